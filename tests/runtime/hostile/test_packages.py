"""Manifests and graphs changed by an attacker, their digests put right: an error of ours, or a text.

The packages are opened in a process of bounded memory and processor time, see :mod:`.opener`; if it dies,
the test fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from q2export.package.hashing import fingerprint_file
from q2export.package.manifest import GRAPH_FILE, MANIFEST_NAME
from q2export.package.protobuf import fields, tag

Change = Callable[[onnx.ModelProto], None]


class Opener:
    """The process that opens packages, and a package to be changed."""

    def __init__(self, original: Path, folder: Path) -> None:
        shutil.copytree(original, folder, copy_function=os.link)
        self.folder = folder
        self.manifest = (folder / MANIFEST_NAME).read_text()
        self.graph = (folder / GRAPH_FILE).read_bytes()
        command = [sys.executable, "-m", "tests.runtime.hostile.opener"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.text = self.open()["text"]

    def open(self, manifest: str | None = None, graph: bytes | None = None) -> dict[str, str]:
        """Write the package, changed, and open it: its text, or class and message of the error."""
        content = self.graph if graph is None else graph
        self._replace(GRAPH_FILE, content)
        if manifest is None:
            data = json.loads(self.manifest)
            record = data["files"][GRAPH_FILE]
            fingerprint = fingerprint_file(self.folder / GRAPH_FILE)
            digest = hashlib.sha256(content).hexdigest()
            record.update(bytes=len(content), sha256=digest, fingerprint=fingerprint)
            manifest = json.dumps(data)
        self._replace(MANIFEST_NAME, manifest.encode("utf-8", "surrogatepass"))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self.folder}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended with {self._process.wait()}"
        found: dict[str, str] = json.loads(line)
        return found

    def _replace(self, name: str, content: bytes) -> None:
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(content)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def opener(qwen2_tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    opener = Opener(qwen2_tiny_package, tmp_path_factory.mktemp("hostile") / "package")
    yield opener
    opener.close()


def assert_refused(opener: Opener, found: dict[str, str], kind: str = "PackageError") -> None:
    assert found.get("error") == kind, found
    assert str(opener.folder) in found["message"]
    assert len(found["message"]) < 2000


# ---- manifests

VALUES = (
    st.sampled_from(
        [0, -1, 1, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 64, None, True, "", "x" * 5000, [], {}]
    )
    | st.integers(1, 300)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
)


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [each for key, value in items for each in ((*prefix, key), *places(value, (*prefix, key)))]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=VALUES, how=st.sampled_from(["set", "set", "set", "delete", "rename"]))
def test_changed_manifests(opener: Opener, data: st.DataObject, value: Any, how: str) -> None:
    """Refused, or the text is the same: nothing in a manifest changes what an engine says."""
    manifest = json.loads(opener.manifest)
    *sections, last = data.draw(st.sampled_from(places(manifest)))
    parent = manifest
    for key in sections:
        parent = parent[key]
    if how == "set":
        parent[last] = value
    else:
        moved = parent.pop(last)
        if how == "rename" and isinstance(parent, dict):
            parent[str(value)] = moved
    found = opener.open(json.dumps(manifest))
    if "text" in found:
        assert found["text"] == opener.text
    elif found["error"] == "GenerationError":  # a capacity that is allowed, and too small
        assert "capacity" in found["message"]
    else:
        assert_refused(opener, found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("profile/threads", 65536),
        ("profile/capacity/max", 1 << 62),
        ("engine/num_hidden_layers", 1 << 30),
        ("engine/num_hidden_layers", 4),
        ("engine/num_key_value_heads", 2),
        ("engine/head_dim", 1 << 30),
        ("engine/vocab_size", 1 << 30),
        ("engine/kv_dtype", "float16"),
        ("engine/file", "weights.safetensors"),
        ("weights/files", [{}] * 100_000),
        ("profile_overrides", {"x" * 1_000_000: 1}),
        ("x" * 1_000_000, 1),
    ],
)
def test_manifests_that_do_not_fit(opener: Opener, key: str, value: object) -> None:
    manifest = json.loads(opener.manifest)
    parent = manifest
    *sections, last = key.split("/")
    for section in sections:
        parent = parent[section]
    parent[last] = value
    assert_refused(opener, opener.open(json.dumps(manifest)))


@pytest.mark.parametrize(
    "text", ["[" * 4_000_000, "[" + "[]," * 1_300_000 + "[]]", "9" * 4_000_000, " " * (5 << 20)]
)
def test_texts_that_are_no_manifest(opener: Opener, text: str) -> None:
    assert_refused(opener, opener.open(text))


# ---- graphs


def chain(length: int, calls: int) -> Change:
    """Functions that each call the next, ``calls`` times."""

    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("evil", 1)]
        names = ["x", *(f"t{number}" for number in range(calls - 1)), "y"]
        for number in range(length):
            op, domain = (f"F{number + 1}", "evil") if number + 1 < length else ("Identity", "")
            nodes = [helper.make_node(op, [names[k]], [names[k + 1]], domain=domain) for k in range(calls)]
            model.functions.append(helper.make_function("evil", f"F{number}", ["x"], ["y"], nodes, opsets))
        model.opset_import.append(opsets[1])
        model.graph.node.append(helper.make_node("F0", ["input_ids"], ["unused"], domain="evil"))

    return change


def nest(model: onnx.ModelProto) -> None:
    """2**14 branches: 43 s in ONNX Runtime."""
    constant = helper.make_node("Constant", [], ["o"], value_float=1.0)
    output = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [])]
    graph = helper.make_graph([constant], "g", [], output)
    for _ in range(14):
        node = helper.make_node("If", ["condition"], ["o"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], output)
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    model.graph.node.append(helper.make_node("Constant", [], ["condition"], value=condition))
    model.graph.node.append(graph.node[0])


def unlisted(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if each.external_data)
    next(each for each in weight.external_data if each.key == "location").value = "other.data"


def many(model: onnx.ModelProto) -> None:
    model.graph.node.extend(helper.make_node("Identity", ["input_ids"], [f"u{n}"]) for n in range(70_000))


def heads(value: int) -> Change:
    """2**40 becomes 0 in 32 bits, and ONNX Runtime divides by it."""

    def change(model: onnx.ModelProto) -> None:
        node = next(each for each in model.graph.node if each.op_type == "Q2RotaryAttention")
        next(each for each in node.attribute if each.name == "num_heads").i = value

    return change


def giant(model: onnx.ModelProto) -> None:
    """2 TiB of position ids."""
    for name, value in (("start", 0), ("limit", 1 << 38), ("delta", 1)):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [], [value]))
    model.graph.node.append(helper.make_node("Range", ["start", "limit", "delta"], ["unused"]))


@pytest.mark.parametrize(
    "change",
    [chain(3000, 1), chain(24, 2), nest, unlisted, many, heads(1 << 40), heads(0), giant],
    ids=["chain", "doubling chain", "nest", "unlisted", "many", "2^40 heads", "no heads", "giant"],
)
def test_graphs_of_attackers(opener: Opener, change: Change) -> None:
    model = onnx.load_model_from_string(opener.graph)
    change(model)
    assert_refused(opener, opener.open(graph=model.SerializeToString()))


def structure(content: bytes) -> list[int]:
    """Positions of all bytes but the values of tensors and what describes intermediate ones."""
    left_out: set[int] = set()
    described, initializer, values = tag(13), tag(5), tag(9)
    for _, start, end in fields(content, 0, len(content), frozenset((tag(7),))):
        for key, first, last in fields(content, start, end, frozenset((described, initializer))):
            found = (
                [(key, first, last)]
                if key == described
                else fields(content, first, last, frozenset((values,)))
            )
            for _, one, two in found:
                left_out.update(range(one, two))
    return [position for position in range(len(content)) if position not in left_out]


BYTES = st.sampled_from([b"", b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff", b"\xff\xff\x7f"]) | st.binary(
    max_size=3
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), removed=st.integers(0, 2), added=BYTES)
def test_changed_graphs(opener: Opener, data: st.DataObject, removed: int, added: bytes) -> None:
    """Whatever byte changes, one error or some text comes of it."""
    position = data.draw(st.sampled_from(structure(opener.graph)))
    graph = opener.graph[:position] + added + opener.graph[position + removed :]
    found = opener.open(graph=graph)
    assert "text" in found or found["error"] in ("PackageError", "GenerationError"), found
    if "error" in found and found["error"] == "PackageError":
        assert_refused(opener, found)
