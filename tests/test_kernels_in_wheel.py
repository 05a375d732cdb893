"""Wheels with and without the CUDA kernels. The compiler is a stand-in, so that one need not be at hand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

import q2export
from tests.plugins import fake_nvcc

LIBRARY = "q2export/plugins/lib/libq2export_kernels.so"
PLUGINS = "q2export/plugins/lib/libq2export_plugins.so"
RECORD = "q2export/plugins/lib/libq2export_kernels.txt"
NAME = f"q2export-{q2export.__version__}"


class Source:
    """A copy of what the package is built from; of the kernels, the smallest source."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder = folder / "source"
        self.wheels = folder / "wheels"
        self.nvcc = fake_nvcc.install(folder / "cuda")
        ignored = shutil.ignore_patterns("__pycache__", "lib", "attention", "moe", "rotary", "gpu.cu")
        shutil.copytree(repository / "plugins", self.folder / "plugins", ignore=ignored)
        (self.folder / "q2export").mkdir()
        (self.folder / "q2export" / "plugins").symlink_to("../plugins")
        for name in ("__init__.py", "version.py"):
            shutil.copy(repository / "q2export" / name, self.folder / "q2export")
        for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
            shutil.copy(repository / name, self.folder)

    def environment(self, architectures: str) -> Mapping[str, str]:
        """With no GPU present but those of ``nvidia-smi``, beside the compiler."""
        path = f"{self.nvcc.parent}{os.pathsep}{os.environ['PATH']}"
        home = str(self.nvcc.parents[1])
        return {
            **{name: value for name, value in os.environ.items() if name != "TENSORRT_ROOT"},
            "PATH": path,
            "CUDA_HOME": home,
            "Q2EXPORT_CUDA_ARCHITECTURES": architectures,
            "Q2EXPORT_CPU_KERNELS": "none",
            "Q2EXPORT_CPP": "none",
        }

    def break_kernels(self) -> None:
        (self.folder / "plugins" / "csrc" / "kernels" / "common" / "error.cu").write_text("#error\n")

    def pip_wheel(
        self, architectures: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Build a wheel in an empty folder."""
        variables = environment or self.environment(architectures)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--wheel-dir", str(self.wheels), str(self.folder)]
        shutil.rmtree(self.wheels, ignore_errors=True)
        return subprocess.run(command, capture_output=True, text=True, env=variables)

    def wheel(self, architectures: str, environment: Mapping[str, str] | None = None) -> Path:
        """The wheel, which has to be built."""
        done = self.pip_wheel(architectures, environment)
        assert done.returncode == 0, done.stderr
        (built,) = self.wheels.iterdir()
        return built


@pytest.fixture
def source(repository: Path, tmp_path: Path) -> Source:
    return Source(repository, tmp_path)


def test_the_wheel_has_the_kernels_and_is_of_a_platform(source: Source) -> None:
    for architectures, gencode in (("80", "sm_80"), ("90", "sm_90a")):
        built = source.wheel(architectures)
        assert built.name.startswith(f"{NAME}-py3-none-linux_")
        with zipfile.ZipFile(built) as archive:
            assert gencode in archive.read(LIBRARY).decode().splitlines()[0]
            assert archive.read(RECORD).decode() == f"CUDA 13.0 for {gencode}\n"
            assert PLUGINS not in archive.namelist()
            record = archive.read(PLUGINS.replace(".so", ".txt")).decode()
            assert record.startswith("none: TENSORRT_ROOT is not set")
            assert not [name for name in archive.namelist() if ".data/" in name or "csrc" in name]
            assert "Root-Is-Purelib: false" in archive.read(f"{NAME}.dist-info/WHEEL").decode()
    calls = fake_nvcc.calls(source.nvcc)
    assert source.wheel("90").exists()
    assert fake_nvcc.calls(source.nvcc) == calls, "nothing has changed"

    built = source.wheel("none")
    assert built.name == f"{NAME}-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        assert LIBRARY not in archive.namelist(), "that of an earlier build"
        assert archive.read(RECORD).decode() == "none: Q2EXPORT_CUDA_ARCHITECTURES is none\n"


def test_the_wheel_has_the_plugins_where_there_are_headers(source: Source, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "NvInferRuntime.h").touch()
    with zipfile.ZipFile(
        source.wheel("80", {**source.environment("80"), "TENSORRT_ROOT": str(tmp_path)})
    ) as archive:
        assert "getCreators" in archive.read(PLUGINS).decode()
        assert LIBRARY in archive.namelist()


def test_unless_told_the_kernels_are_for_the_gpus_present(source: Source) -> None:
    tool = source.nvcc.with_name("nvidia-smi")
    for script, reason in (("exit 9", "there is no GPU here"), ("echo 8.6", None)):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        with zipfile.ZipFile(source.wheel("")) as archive:
            assert (LIBRARY in archive.namelist()) == (reason is None)
            assert (reason or "CUDA 13.0 for sm_86") in archive.read(RECORD).decode()
    source.break_kernels()
    with zipfile.ZipFile(source.wheel("")) as archive:
        assert LIBRARY not in archive.namelist(), "what nobody asked for fails no installation"
        assert re.fullmatch(
            r"none: .*error\.cu\(1\): error: #error directive\n", archive.read(RECORD).decode()
        )


def test_a_compiler_that_fails_fails_the_installation_that_asks_for_kernels(source: Source) -> None:
    source.break_kernels()
    done = source.pip_wheel("80")
    assert done.returncode != 0
    assert "error.cu(1): error: #error directive" in done.stderr
    assert "Q2EXPORT_CUDA_ARCHITECTURES=none installs q2export without them" in done.stderr
    assert not list(source.wheels.glob("*"))


def test_what_is_no_architecture_is_refused(source: Source) -> None:
    for architectures, reason in (
        ("sm_90", "Q2EXPORT_CUDA_ARCHITECTURES has 'sm_90', expected compute capabilities"),
        ("130", "generates code for none of sm_130"),
    ):
        done = source.pip_wheel(architectures)
        assert done.returncode != 0
        assert "error: no CUDA kernels: " in done.stderr and reason in done.stderr


def test_a_source_distribution_builds_the_same_wheel(source: Source, tmp_path: Path) -> None:
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path)]
    subprocess.run(
        command, check=True, cwd=source.folder, stdout=subprocess.DEVNULL, env=source.environment("80")
    )
    with zipfile.ZipFile(source.wheel("80")) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    with tarfile.open(tmp_path / f"{NAME}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source.folder = tmp_path / NAME
    with zipfile.ZipFile(source.wheel("80")) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name] and ".dist-info/" not in name] == []


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_an_editable_installation_finds_the_kernels(source: Source, mode: str, tmp_path: Path) -> None:
    script = (
        "import sys; from setuptools import build_meta;"
        "build_meta.build_editable(sys.argv[1], {'editable_mode': sys.argv[2]})"
    )
    output = tmp_path / "editable"
    output.mkdir()
    command = [sys.executable, "-c", script, str(output), mode]
    subprocess.run(
        command, check=True, cwd=source.folder, env=source.environment("80"), stdout=subprocess.DEVNULL
    )
    (built,) = output.iterdir()
    installed = tmp_path / "site"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(installed)
    find = "import q2export.plugins as p, pathlib; print(pathlib.Path(p.__file__).with_name('lib'))"
    # As a site directory, so that the hooks of editable installations run; without other installations (-S).
    script = f"import site; site.addsitedir({str(installed)!r}); {find}"
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    library = Path(done.stdout.strip()) / Path(LIBRARY).name
    assert library.is_file()
    assert (source.folder / "plugins" / "lib" / library.name).is_file()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_wheel_has_the_cpu_kernels(source: Source) -> None:
    csrc = source.folder / "plugins" / "csrc"
    shutil.rmtree(csrc / "cpu")
    for path in csrc.glob("onnxruntime/*.cpp"):
        path.unlink()
    (csrc / "onnxruntime" / "library.cpp").write_text("int q2export_cpu_stand_in = 1;\n")
    environment = {**source.environment("none"), "Q2EXPORT_CPU_KERNELS": "", "CXX": "g++"}
    library = "q2export/plugins/lib/libq2export_onnxruntime.so"
    built = source.wheel("none", environment)
    assert built.name.startswith(f"{NAME}-py3-none-linux_")
    with zipfile.ZipFile(built) as archive:
        assert archive.read(library)[:4] == b"\x7fELF"
        assert "g++" in archive.read(library.replace(".so", ".txt")).decode()
        assert not [name for name in archive.namelist() if "csrc" in name]
    (csrc / "onnxruntime" / "library.cpp").write_text("#error\n")
    with zipfile.ZipFile(source.wheel("none", environment)) as archive:
        assert library not in archive.namelist()
        assert re.match("none: .*library.cpp.*#error", archive.read(library.replace(".so", ".txt")).decode())
    done = source.pip_wheel("none", {**environment, "Q2EXPORT_CPU_KERNELS": "required"})
    assert done.returncode != 0
    assert "Q2EXPORT_CPU_KERNELS=none installs q2export without them" in done.stderr
    assert source.wheel("none", {**environment, "CXX": "absent"}).name == f"{NAME}-py3-none-any.whl"
