"""The damaged packages of the Python loader's tests, read in C++ under sanitizers: refused, and no crash."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from q2export.contracts import opspec
from q2export.errors import Q2ExportError
from q2export.package.hashing import fingerprint_file, hash_file
from q2export.package.manifest import MANIFEST_NAME, Manifest
from q2export.package.reader import read_package
from q2export.package.writer import PackageWriter
from q2export.plugins.kernel_build import EngineLibrary
from q2export.runtime.generation_config import read_generation_defaults
from tests.package import test_graph_check as graphs
from tests.package import test_manifest as manifests
from tests.package.packages import graph_text, make_manifest
from tests.package.test_reader import test_damage_names_file_both_sides_and_the_way_out as damages
from tests.runtime.cpp.compiling import sanitized

READER = ("error.cpp", "json", "package", "generate/defaults.cpp", "generate/options.cpp")


@pytest.fixture(scope="session")
def reader(engine_build: EngineLibrary) -> Path:
    """``open_packages.cpp`` under the address and the undefined behaviour sanitizer."""
    return sanitized(engine_build, "address", Path(__file__).with_name("open_packages.cpp"), READER)


def opened(reader: Path, folders: list[Path], prefix: str = "") -> list[str]:
    """What the program says of each package."""
    lines = "".join(f"{prefix}{folder}\n" for folder in folders)
    done = subprocess.run([reader], input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    said = done.stdout.splitlines()
    assert len(said) == len(folders)
    return said


def write(folder: Path, graph: str | bytes, texts: dict[str, str] | None = None) -> Path:
    """A package of a graph and text files, of today's ops."""
    content = graph.encode() if isinstance(graph, str) else graph
    with PackageWriter.open(folder) as writer:
        writer.add_text("model.onnx", graph_text())
        for name, text in {"tokenizer/tokenizer.json": "{}", **(texts or {})}.items():
            writer.add_text(name, text)
        if content:
            (folder.parent / "w").write_bytes(bytes(1000))
            writer.place_weights(folder.parent / "w", "weights.safetensors")
        made = make_manifest(writer.files, writer.weights)
        writer.write_manifest(dataclasses.replace(made, op_contract_version=opspec.CONTRACT_VERSION))
    return replace_graph(folder, content) if content else folder


def replace_graph(folder: Path, content: bytes) -> Path:
    """Other bytes in the place of the graph, with the digests to match."""
    path = folder / "model.onnx"
    path.write_bytes(content)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["files"]["model.onnx"] |= {
        "bytes": len(content),
        "sha256": hash_file(path),
        "fingerprint": fingerprint_file(path),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    return folder


def edited(folder: Path, source: Path, text: str | bytes) -> Path:
    """A package whose manifest is this text; its other files are links out of it."""
    folder.mkdir()
    (folder / MANIFEST_NAME).write_bytes(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    )
    for path in source.iterdir():
        if path.name != MANIFEST_NAME:
            (folder / path.name).symlink_to(path)
    return folder


def test_whole_packages_are_taken(reader: Path, tmp_path: Path, qwen2_tiny_package: Path) -> None:
    package = write(tmp_path / "p", graphs.CONTENT)
    assert opened(reader, [package, qwen2_tiny_package]) == ["ok", "ok"]
    assert opened(reader, [package], "FULL ") == ["ok"]


def test_damaged_files_are_refused(reader: Path, tmp_path: Path) -> None:
    (mark,) = (one for one in damages.pytestmark if one.args[0] == ("damage", "message"))
    folders = []
    for number, (damage, _) in enumerate(mark.args[1]):
        folders.append(write(tmp_path / str(number), ""))
        damage(folders[-1] / "model.onnx")
    for made in (Path.touch, os.mkfifo):
        folders.append(write(tmp_path / made.__name__, ""))
        made(folders[-1] / "config.json")
    for target in ("/dev/zero", "../manifest.json", "manifest.json"):
        folders.append(write(tmp_path / f"link{len(folders)}", ""))
        (folders[-1] / MANIFEST_NAME).unlink()
        (folders[-1] / MANIFEST_NAME).symlink_to(target)
    (tmp_path / "empty").mkdir()
    folders += [tmp_path / "nothing", tmp_path / "empty", tmp_path / ("d" * 300)]
    for folder, said in zip(folders, opened(reader, folders), strict=True):
        assert said.startswith("4 "), (folder, said)
        with pytest.raises(Q2ExportError):
            read_package(folder)


def corpus(folder: Path) -> list[str | bytes]:
    """Manifests that the Python loader must refuse."""
    source = (folder / MANIFEST_NAME).read_text()
    found: list[str | bytes] = [
        *manifests.NO_OBJECTS,
        *manifests.NO_NUMBERS,
        '{"a": 1, "a": 1}',
        b"\xff",
        b"{\xc0\x80}",
    ]
    (mark,) = manifests.test_refused.pytestmark
    for key, value, _ in mark.args[1]:
        data = json.loads(source)
        manifests.change(data, key, value)
        found.append(json.dumps(data))
    for name in [*manifests.ESCAPING, "a\\b", "a\n", MANIFEST_NAME]:
        data = json.loads(source)
        data["files"][name] = data["files"]["model.onnx"]
        found.append(json.dumps(data))
    for key in json.loads(source):
        found.append(json.dumps({name: value for name, value in json.loads(source).items() if name != key}))
    return found


def test_damaged_manifests_are_refused(reader: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "source", graphs.CONTENT)
    folders = [edited(tmp_path / f"m{n}", source, text) for n, text in enumerate(corpus(source))]
    assert len(folders) > 80
    for folder, said in zip(folders, opened(reader, folders), strict=True):
        path = folder / MANIFEST_NAME
        with pytest.raises(Q2ExportError):
            Manifest.from_json(path.read_bytes())
        assert said.startswith(f"4 {path}: "), (said, path.read_bytes()[:3000])


def test_changed_manifests_are_taken_or_refused_as_in_python(reader: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "source", "")
    rng = random.Random(0)
    values = [None, True, 0, -1, 1, 1 << 63, 1 << 70, 1.5, 1e400, "", "x", "../x", [], {}, [1], {"a": {}}]
    texts = []
    for _ in range(150):
        data: Any = json.loads((source / MANIFEST_NAME).read_text())
        places = [
            place for place in manifests.places(data) if place[0] != "profile"
        ]  # Python also checks meanings
        *way, last = rng.choice(places)
        parent = data
        for key in way:
            parent = parent[key]
        if rng.random() < 0.7:
            parent[last] = rng.choice(values)
        else:
            del parent[last]
        texts.append(json.dumps(data))
    folders = [edited(tmp_path / f"m{n}", source, text) for n, text in enumerate(texts)]
    for text, said in zip(texts, opened(reader, folders), strict=True):
        try:
            Manifest.from_json(text)
            read_package(folders[texts.index(text)])
        except Q2ExportError:
            assert said.startswith("4 "), (said, text)
        else:
            contract = json.loads(text)["op_contract_version"] == opspec.CONTRACT_VERSION
            assert said == "ok" or not contract, (said, text)


def test_damaged_graphs_are_refused(reader: Path, tmp_path: Path) -> None:
    contents: list[bytes] = [
        b"graph",
        b"\x08\x0b",
        b"\x3a\x05",
        b"\x3a\x00",
        b"\x0b\x0c",
        b"\xff" * 20,
        b"\x3a\xff\xff",
    ]
    change: Callable[..., None]
    for change, _ in graphs.REFUSED:
        model = graphs.good()
        change(model)
        contents.append(model.SerializeToString())
    source = write(tmp_path / "source", graphs.CONTENT)
    folders = []
    for number, content in enumerate(contents):
        folders.append(tmp_path / f"g{number}")
        folders[-1].mkdir()
        for name in (MANIFEST_NAME, "weights.safetensors"):
            (folders[-1] / name).write_bytes((source / name).read_bytes())
        (folders[-1] / "tokenizer").mkdir()
        (folders[-1] / "tokenizer" / "tokenizer.json").write_text("{}")
        replace_graph(folders[-1], content)
    for folder, said in zip(folders, opened(reader, folders), strict=True):
        assert said.startswith("4 ") and "model.onnx: " in said and "rebuild with" in said, said
        with pytest.raises(Q2ExportError):
            read_package(folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"eos_token_id": 151}',
        '{"eos_token_id": [1, -1]}',
        '{"eos_token_id": true}',
        '{"temperature": "1"}',
        '{"top_p": 0}',
        '{"top_k": 1.5}',
        '{"do_sample": 1}',
        '{"max_new_tokens": 0}',
        '{"top_k": 99999999999999999999}',
        "[]",
        '{"a": 1, "a": 2}',
    ],
)
def test_wrong_generation_configurations_are_refused(reader: Path, tmp_path: Path, text: str) -> None:
    package = write(tmp_path / "p", graphs.CONTENT, {"generation_config.json": text})
    (said,) = opened(reader, [package])
    if "99999999999999999999" not in text:  # Python has larger integers
        with pytest.raises(Q2ExportError):
            read_generation_defaults(package, 151)
    assert said.startswith("5 ") and "generation_config.json: " in said, said


def test_mutated_bytes_crash_nothing(reader: Path, tmp_path: Path, qwen2_tiny_package: Path) -> None:
    graph = tmp_path / "graph"
    graph.write_bytes(graphs.CONTENT)
    command = [reader, "fuzz", "1500", qwen2_tiny_package / MANIFEST_NAME, graph, tmp_path / "scratch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("of 3000 were taken\n")
