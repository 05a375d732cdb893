"""Which TensorRT is imported, and the cure that lets the RTX parser meet a plugin."""

from __future__ import annotations

import ctypes
import importlib
import os
import struct
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from q2export.contracts import opspec
from q2export.contracts.commands import install_command
from q2export.errors import MissingDependencyError
from q2export.plugins.tensorrt import loader, stub_library
from tests.plugins.networks import load_rtx

PARSE = """
import sys
{load}
from q2export.plugins.tensorrt.registry import register
from tests.plugins.networks import Parsed, one_node
from q2export.contracts import opspec
register(trt)
for name in {ops!r}:
    parsed = Parsed(trt, one_node(getattr(opspec, name), with_function=True))
    print(parsed.ok, [layer.type.name for layer in parsed.layers(trt.LayerType.PLUGIN_V3)])
"""
CURED = "from q2export.plugins.tensorrt.loader import import_tensorrt; trt = import_tensorrt('rtx')"
AS_SHIPPED = "import tensorrt_rtx_bindings as trt"


def parse_in_a_process(load: str, ops: list[str], root: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run(
        [sys.executable, "-c", PARSE.format(load=load, ops=ops)],
        capture_output=True,
        text=True,
        cwd=str(root),
        env=environment,
    )


def test_parsing_plugin_nodes_survives(repository: object) -> None:
    load_rtx()
    ops = ["ROTARY", "ATTENTION", "ROTARY_ATTENTION", "MOE"]
    result = parse_in_a_process(CURED, ops, repository)
    assert (result.returncode, result.stdout) == (0, "True ['PLUGIN_V3']\n" * len(ops)), result.stderr


def test_the_cure_is_needed(repository: object) -> None:
    load_rtx()
    result = parse_in_a_process(AS_SHIPPED, ["ROTARY"], repository)
    if result.returncode == 0:
        pytest.skip("this TensorRT-RTX, or this machine's libtensorrt_rtx.so, needs no cure")
    assert "terminate called" in result.stderr


def test_a_stub_forwards_to_its_library() -> None:
    ctypes.CDLL("libm.so.6")
    assert not stub_library.is_loaded("libq2export-forwarded-m.so")
    stub_library.provide("libq2export-forwarded-m.so", "libm.so.6")
    stub_library.provide("libq2export-forwarded-m.so", "libm.so.6")  # again: nothing to do
    cosine = ctypes.CDLL("libq2export-forwarded-m.so").cos
    cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
    assert cosine(0.0) == 1.0


def test_a_stub_leaves_no_file(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub_library.tempfile, "tempdir", str(tmp_path))
    stub_library.provide("libq2export-forwarded-c.so", "libc.so.6")
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_stub_is_elf_of_the_machine_asked_for(machine: str, number: int) -> None:
    assert stub_library._MACHINES[machine] == number
    image = stub_library.forwarding_library("liba.so", "libb.so.1", number)
    assert image[:7] == b"\x7fELF\x02\x01\x01"
    kind, found = struct.unpack_from("<HH", image, 16)
    assert (kind, found) == (3, number)
    headers = [struct.unpack_from("<IIQQQQQQ", image, 64 + 56 * i) for i in range(3)]
    load, dynamic, stack = headers
    assert load[5] == len(image) and not any(header[1] & 1 for header in headers)  # nothing executable
    assert stack[0] == 0x6474E551
    tags = dict(struct.unpack_from("<QQ", image, dynamic[2] + 16 * i) for i in range(dynamic[5] // 16))
    strings = image[tags[5] : tags[5] + tags[10]]
    names = {tag: strings[tags[tag] :].split(b"\0")[0] for tag in (1, 14)}
    assert names == {1: b"libb.so.1", 14: b"liba.so"}


def test_a_stub_needs_its_library_and_a_known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"libq2export-absent\.so\.1 is not loaded"):
        stub_library.provide("libq2export-stub.so", "libq2export-absent.so.1")
    monkeypatch.setattr(stub_library.platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64: expected x86_64 or aarch64"):
        stub_library.provide("libq2export-stub.so", "libm.so.6")


def full_tensorrt(version: str) -> ModuleType:
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    return module


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType | Exception]:
    """Module name -> what importing it gives; everything else cannot be imported. No cure is attempted."""
    modules: dict[str, ModuleType | Exception] = {}

    def import_module(name: str) -> ModuleType:
        found = modules.get(name, ImportError(f"No module named {name!r}"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(loader, "_cure_rtx_parser", lambda: None)
    return modules


@pytest.mark.parametrize(
    ("builder", "gpu", "expected"),
    [
        ("auto", True, "tensorrt"),
        ("auto", False, "tensorrt_rtx_bindings"),
        ("rtx", True, "tensorrt_rtx_bindings"),
        ("tensorrt", False, "tensorrt"),
    ],
)
def test_which_module_is_taken(
    builder: str,
    gpu: bool,
    expected: str,
    importable: dict[str, ModuleType | Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    importable |= {name: ModuleType(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")}
    importable["tensorrt"] = full_tensorrt("10.15.1.29")
    monkeypatch.setattr(loader, "gpu_present", lambda: gpu)
    found = loader.import_tensorrt(builder)
    assert found.__name__ == expected
    assert loader.is_rtx(found) == (expected != "tensorrt")


def test_a_broken_tensorrt_is_passed_over(
    importable: dict[str, ModuleType | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    importable["tensorrt"] = OSError("libnvinfer.so.11: cannot open shared object file")
    importable["tensorrt_rtx"] = ModuleType("tensorrt_rtx")
    monkeypatch.setattr(loader, "gpu_present", lambda: True)
    assert loader.import_tensorrt().__name__ == "tensorrt_rtx"
    with pytest.raises(MissingDependencyError, match=r"libnvinfer\.so\.11: cannot open"):
        loader.import_tensorrt("tensorrt")


@pytest.mark.parametrize(("version", "taken"), [("10.15.0", True), ("11.1.0.106", True), ("10.14.9", False)])
def test_an_old_tensorrt_is_passed_over(
    version: str,
    taken: bool,
    importable: dict[str, ModuleType | Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    importable["tensorrt"] = full_tensorrt(version)
    importable["tensorrt_rtx"] = ModuleType("tensorrt_rtx")
    monkeypatch.setattr(loader, "gpu_present", lambda: True)
    assert loader.import_tensorrt("auto").__name__ == ("tensorrt" if taken else "tensorrt_rtx")
    if not taken:
        with pytest.raises(MissingDependencyError, match=r"tensorrt 10\.14\.9 is installed, 10\.15 or later"):
            loader.import_tensorrt("tensorrt")


def test_the_extra_asks_for_the_same_tensorrt(repository: Path) -> None:
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    oldest = ".".join(map(str, loader.OLDEST_TENSORRT))
    assert f"tensorrt>={oldest}" in extras["tensorrt"]


@pytest.mark.parametrize(
    ("builder", "extras"),
    [("auto", {"rtx", "tensorrt"}), ("rtx", {"rtx"}), ("tensorrt", {"rtx", "tensorrt"})],
)
@pytest.mark.usefixtures("importable")
def test_what_is_missing_is_named_with_its_extra(builder: str, extras: set[str]) -> None:
    with pytest.raises(MissingDependencyError, match="No module named") as caught:
        loader.import_tensorrt(builder)
    assert {extra for extra in ("rtx", "tensorrt") if install_command(extra) in str(caught.value)} == extras


def test_an_unknown_builder_is_refused() -> None:
    with pytest.raises(ValueError, match="no builder 'tensort'; did you mean 'tensorrt'"):
        loader.import_tensorrt("tensort")


def test_a_library_name_that_cannot_be_provided_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_RTX_LIBRARY", "libq2export-none.so")
    monkeypatch.setattr(loader, "_RTX_VERSIONED_LIBRARY", "libq2export-none.so.1")
    with pytest.raises(MissingDependencyError, match=r"libq2export-none\.so, which cannot be provided"):
        loader._cure_rtx_parser()


def test_plugin_names_cannot_be_taken_for_builtin_ops() -> None:
    """The importers of TensorRT match on the op type alone, in any domain."""
    assert all(spec.name.startswith("Q2") for spec in opspec.ALL)
