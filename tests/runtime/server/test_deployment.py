"""The container and the manifests of ``examples/kubernetes`` agree with the server."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from q2export.cli.serve import command as serve
from q2export.runtime.server.app import OPERATIONS

PORT = next(option.default for option in serve.params if option.name == "port")
OPEN = {each.path for each in OPERATIONS if each.open_to_all and each.method == "GET"}


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    return repository / "examples" / "kubernetes"


@pytest.fixture(scope="module")
def dockerfile(folder: Path) -> list[list[str]]:
    """Instructions, split at spaces."""
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def manifests(folder: Path) -> dict[str, Any]:
    """By kind."""
    documents = list(yaml.safe_load_all((folder / "q2export.yaml").read_text()))
    return {each["kind"]: each for each in documents}


def options(dockerfile: list[list[str]], args: list[str]) -> dict[str, Any]:
    """What the server makes of its command line in the container."""
    (entry,) = [json.loads(rest) for name, rest in dockerfile if name == "ENTRYPOINT"]
    assert entry[:2] == ["q2export", "serve"]
    context: click.Context = serve.make_context("serve", [*entry[2:], *args])
    return context.params


def test_the_container_listens_where_it_says(dockerfile: list[list[str]], repository: Path) -> None:
    assert [rest for name, rest in dockerfile if name == "EXPOSE"] == [str(PORT)]
    assert options(dockerfile, ["/models/m"])["host"] == "0.0.0.0"
    installed = " ".join(rest for name, rest in dockerfile if name == "RUN")
    assert set(re.findall(r"\[(\w+)\]", installed)) == {"server"}
    assert all(shlex.split(rest) for name, rest in dockerfile if name == "RUN")


def test_the_image_is_built_from_what_is_there(folder: Path, repository: Path) -> None:
    """And from every room of the wheel, see ``tests/test_repository.py``."""
    lines = (folder / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert all((repository / name).exists() for name in kept)
    links = {path.name for path in (repository / "q2export").iterdir() if path.is_symlink()}
    assert links | {"q2export", "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= kept


def test_probes_ask_addresses_that_need_no_key(manifests: dict[str, Any]) -> None:
    template = manifests["Deployment"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == PORT
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in OPEN
        assert asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    annotations = template["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in OPEN
    assert annotations["prometheus.io/port"] == str(PORT)
    assert manifests["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert manifests["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()


def test_there_is_time_to_drain(manifests: dict[str, Any], dockerfile: list[list[str]]) -> None:
    pod = manifests["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = options(dockerfile, container["args"])
    _, before = container["lifecycle"]["preStop"]["exec"]["command"]
    last_words = 5
    assert int(before) + given["drain_timeout"] + last_words <= pod["terminationGracePeriodSeconds"]
    assert given["threads"] == int(container["resources"]["limits"]["cpu"])
    assert given["port"] == PORT
    (mount,) = container["volumeMounts"]
    assert [str(path.parent) for path in given["packages"]] == [mount["mountPath"]]
