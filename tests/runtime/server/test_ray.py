"""The application for Ray Serve, up to where a cluster would begin."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from q2export.errors import MissingDependencyError, OptionError, PackageError
from q2export.package.reader import read_package
from q2export.runtime.server.ray import ReplicaOptions, app, build

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


def test_arguments_of_a_command_line_are_text(qwen2_tiny_package: Path) -> None:
    manifest = read_package(qwen2_tiny_package, "none").manifest
    args = {"package": str(qwen2_tiny_package), "rows": "3", "threads": "1", "max_replicas": "4"}
    assert ReplicaOptions.of(args).deployment(manifest) == {
        "max_ongoing_requests": 3 + 256,
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 3},
        "graceful_shutdown_timeout_s": 30.0,
        "ray_actor_options": {"num_cpus": 1},
    }
    options = ReplicaOptions.of({"package": qwen2_tiny_package}).deployment(manifest)
    assert options["autoscaling_config"]["target_ongoing_requests"] == manifest.engine.max_batch


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "package is wrong: Field required"),
        ({"package": "p", "row": 2}, "row is wrong: Extra inputs are not permitted, found 2"),
        ({"package": "p", "rows": "many"}, "rows is wrong: .*found 'many'"),
        ({"package": "p", "min_replicas": 3}, "max_replicas must be at least min_replicas, found 1 and 3"),
    ],
)
def test_wrong_arguments(args: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        app(args)


def test_what_the_package_cannot(qwen2_tiny_package: Path, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="no manifest"):
        app({"package": tmp_path})
    with pytest.raises(OptionError, match="rows must be at most 8, what the engine was built for, found 9"):
        app({"package": qwen2_tiny_package, "rows": 9})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_its_extra_is_named(qwen2_tiny_package: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"Ray Serve: pip install .*ray"):
        app({"package": qwen2_tiny_package})


@needs_ray
def test_the_application_for_a_cluster(qwen2_tiny_package: Path) -> None:
    application: Any = app({"package": qwen2_tiny_package, "rows": 2, "max_replicas": 2, "threads": 1})
    deployment = application._bound_deployment
    assert deployment.name == "q2export"
    assert deployment.max_ongoing_requests == 258
    assert deployment.ray_actor_options["num_cpus"] == 1


def test_a_replica_answers(qwen2_tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2EXPORT_API_KEY", "secret")
    options = ReplicaOptions.of({"package": qwen2_tiny_package, "name": "m", "threads": 1})
    body = {"prompt": "A class", "max_tokens": 5, "temperature": 0}
    with TestClient(build(options)) as client:
        assert client.get("/health/ready").json() == {"status": "ready", "models": ["m"]}
        assert client.post("/v1/completions", json=body).status_code == 401
        answer = client.post("/v1/completions", json=body, headers={"Authorization": "Bearer secret"})
        assert answer.json()["usage"]["completion_tokens"] == 5


def test_the_example_is_right(repository: Path) -> None:
    """Its arguments are arguments, and it names a function that is there."""
    config = yaml.safe_load((repository / "examples" / "ray" / "serve.yaml").read_text())
    (application,) = config["applications"]
    assert application["import_path"] == f"{app.__module__}:{app.__name__}"
    options = ReplicaOptions.of(application["args"])
    assert options.max_replicas > options.min_replicas
