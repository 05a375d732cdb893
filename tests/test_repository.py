"""The repository itself: what the wheel holds, who imports whom, that declarations are true."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import q2export
from q2export import errors

ROOMS = ("exporter", "plugins", "profiles", "runtime")
SOURCES = ("q2export", *ROOMS)
DATA_SUFFIXES = {".css", ".html", ".js", ".typed", ".yaml"}
ROOT_FILES = {
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
}
ROOT_FOLDERS = {".ci", "benchmarks", "docs", "examples", "tests", *SOURCES}
# Import name -> distribution, where they differ.
DISTRIBUTION_OF = {
    "google": "onnx",  # protobuf, which onnx brings along
    "huggingface_hub": "huggingface-hub",
    "onnx_ir": "onnx-ir",
    "prometheus_client": "prometheus-client",
    "yaml": "pyyaml",
}


def tracked(repository: Path) -> list[str]:
    """Paths of the files under version control."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the files that belong to it")
    return [name for name in listing.stdout.split("\0") if name and (repository / name).exists()]


def sources(repository: Path) -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every module of the wheel."""
    for room in SOURCES:
        for path in sorted((repository / room).rglob("*.py")):
            yield str(path.relative_to(repository)), ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build in place would leave stale modules for the next one."""
    copy, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", "lib")
    for room in SOURCES:
        shutil.copytree(repository / room, copy / room, ignore=ignored, symlinks=True)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(repository / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # What a compiler adds is tested in test_kernels_in_wheel.py.
    environment = {
        **os.environ,
        "Q2EXPORT_CUDA_ARCHITECTURES": "none",
        "Q2EXPORT_CPU_KERNELS": "none",
        "Q2EXPORT_CPP": "none",
    }
    subprocess.run([*command, "--wheel-dir", str(output), str(copy)], check=True, env=environment)
    (built,) = output.iterdir()
    return built


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path, repository: Path) -> None:
    expected = {
        f"{'' if room == 'q2export' else 'q2export/'}{path.relative_to(repository).as_posix()}"
        for room in SOURCES
        for path in (repository / room).rglob("*")
        if path.suffix in {".py", *DATA_SUFFIXES}
    } | {f"q2export/plugins/lib/libq2export_{name}.txt" for name in ("kernels", "onnxruntime", "plugins")}
    expected.add("q2export/runtime/cpp/libq2export.txt")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        others = {name.partition("/")[0] for name in archive.namelist()} - {"q2export"}
    assert found == expected
    assert others == {f"q2export-{q2export.__version__}.dist-info"}
    must = {"q2export/py.typed", "q2export/profiles/cpu.yaml", "q2export/compare/report/page.html"}
    assert must <= found


def test_the_wheel_is_described(wheel: Path) -> None:
    prefix = f"q2export-{q2export.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{prefix}/METADATA").decode())
        assert f"{prefix}/licenses/LICENSE" in archive.namelist()
        assert (
            "q2export = q2export.cli.main:entry_point" in archive.read(f"{prefix}/entry_points.txt").decode()
        )
    assert metadata["Name"] == "q2export"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra") or ()) == {
        "cuda",
        "dev",
        "export",
        "ray",
        "rtx",
        "server",
        "tensorrt",
    }


def test_the_root_holds_what_the_layout_says(repository: Path) -> None:
    names = tracked(repository)
    assert {name.partition("/")[0] for name in names if "/" in name} <= ROOT_FOLDERS
    assert {name for name in names if "/" not in name} <= ROOT_FILES
    for room in ROOMS:
        assert os.readlink(repository / "q2export" / room) == f"../{room}"


def test_files_are_short(repository: Path) -> None:
    """Of any language; that functions are, ruff checks (PLR0915, C901)."""
    long = [
        f"{name}: {lines} lines"
        for name in tracked(repository)
        if name.endswith((".py", ".cpp", ".cu", ".h", ".hpp", ".c"))
        for lines in [len((repository / name).read_text(encoding="utf-8").splitlines())]
        if lines > 400
    ]
    assert long == []


def test_every_library_that_is_imported_is_declared(repository: Path) -> None:
    declared = _declared(repository)
    for path, tree in sources(repository):
        for name in _imported(tree):
            if name in sys.stdlib_module_names or name == "q2export":
                continue
            assert DISTRIBUTION_OF.get(name, name) in declared, f"{path} imports {name}"


def _declared(repository: Path) -> set[str]:
    """Distributions that a plain installation or the extras ``export``, ``ray`` and ``server`` bring."""
    text = (repository / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r"^(?:dependencies|export|ray|server) = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    assert len(lists) == 4
    return {name for part in lists for name in re.findall(r'"([A-Za-z0-9-]+)', part)}


def _imported(tree: ast.Module) -> Iterator[str]:
    """Top-level names of all imports, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_the_runtime_generates_without_the_compiler(qwen2_tiny_package: Path) -> None:
    """In a process where importing PyTorch, onnx or the exporter fails."""
    script = f"""
import sys
for name in ("torch", "onnx", "onnx_ir", "transformers", "safetensors", "polygraphy", "q2export.exporter"):
    sys.modules[name] = None
import q2export
engine = q2export.load({str(qwen2_tiny_package)!r}, threads=1)
print(engine.generate("The ", max_new_tokens=5, do_sample=False).finish_reason)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "length\n"


def test_the_public_api_is_lazy_and_complete() -> None:
    script = (
        "import sys, q2export; assert not {'numpy', 'torch', 'onnx', 'yaml'} & set(sys.modules);"
        "assert set(q2export.__all__) <= set(dir(q2export));"
        "print(*(getattr(q2export, name).__module__ for name in dir(q2export) if name[0] != '_'))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    scheduler = {"q2export.runtime.scheduler.options", "q2export.runtime.scheduler.scheduler"}
    modules = {"q2export.api", "q2export.errors", "q2export.runtime", "q2export.runtime.engine"}
    assert set(result.stdout.split()) == modules | scheduler
    family = {name for name in vars(errors) if name.endswith("Error")}
    assert family == {name for name in q2export.__all__ if name.endswith("Error")}
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        q2export.bild  # noqa: B018


def test_only_the_command_line_speaks_of_its_options(repository: Path) -> None:
    """What the API raises and logs names arguments and keys; whole commands may be told."""
    programs = ("q2export/cli/", "plugins/kernel_build/", "q2export/compare/polygraphy_compare.py")
    found = [
        f"{path}:{node.lineno}: {node.value}"
        for path, tree in sources(repository)
        if not path.startswith(programs)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count("\n") == 0
        if re.search(r"[a-z(] ?--[a-z]", node.value)
        and "q2export " not in node.value
        and "``" not in node.value
    ]
    assert found == []


def test_no_file_names_a_machine_or_a_leftover(repository: Path) -> None:
    # Put together, so that this file does not name them itself.
    words = ["/" + "work/", "/" + "tmp/v", "TO" + "DO", "FIX" + "ME", "XX" + "X"]
    found = [
        f"{name}: {word}"
        for name in tracked(repository)
        if name.endswith((".py", ".md", ".toml", ".yaml", ".txt", ".html", ".css", "Makefile", "run"))
        and not name.startswith("tests/data/")
        for word in words
        if word in (repository / name).read_text(encoding="utf-8")
    ]
    assert found == []
