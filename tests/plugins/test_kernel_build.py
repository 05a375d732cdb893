"""Building the kernels: by which compiler, for which GPUs, what again. The compiler is a stand-in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import (
    ARCHITECTURES,
    KernelBuildError,
    KernelLibrary,
    NoKernelsError,
    PluginLibrary,
    plan,
    tensorrt_include,
    wanted_architectures,
)
from q2export.plugins.kernel_build.compiler import code_flags
from tests.host_cuda.compiling import ROOT
from tests.plugins import fake_nvcc

ALL = {"Q2EXPORT_CUDA_ARCHITECTURES": "all"}


class TestArchitectures:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("all", ARCHITECTURES),
            ("86", ("86",)),
            ("100;80, 90", ("80", "90a", "100")),
            ("90a 90", ("90a",)),
            ("None", ()),
        ],
    )
    def test_are_read(self, value: str, expected: tuple[str, ...]) -> None:
        assert wanted_architectures({"Q2EXPORT_CUDA_ARCHITECTURES": value}) == expected

    @pytest.mark.parametrize("value", ["", "native"])
    def test_of_the_gpus_present(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        environment = {"Q2EXPORT_CUDA_ARCHITECTURES": value}
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(KernelBuildError) as caught:
            wanted_architectures(environment)
        assert isinstance(caught.value, NoKernelsError) != (value == "native")
        assert ("nvidia-smi names no GPU" if value else "there is no GPU here; Q2EXPORT_CUDA") in str(
            caught.value
        )
        tool = tmp_path / "nvidia-smi"
        tool.write_text("#!/bin/sh\nprintf '9.0\\n8.9\\n[N/A]\\n7.5\\n9.0\\n'\n")
        tool.chmod(0o755)
        assert wanted_architectures(environment) == ("89", "90a")
        tool.write_text("#!/bin/sh\nprintf '7.5\\n'\n")
        with pytest.raises(NoKernelsError, match=r"only GPUs of compute capability 7\.5 here"):
            wanted_architectures(environment)

    @pytest.mark.parametrize("value", ["sm_90", "9.0", "75", "80;all", "none;80"])
    def test_are_refused_by_name(self, value: str) -> None:
        wrong = value.split(";")[-1] if "all" in value else value.split(";")[0]
        with pytest.raises(KernelBuildError, match=f"Q2EXPORT_CUDA_ARCHITECTURES has '{re.escape(wrong)}'"):
            wanted_architectures({"Q2EXPORT_CUDA_ARCHITECTURES": value})

    def test_code_for_each_and_ptx_of_the_last(self) -> None:
        assert code_flags(("80", "86")) == [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_86,code=sm_86",
            "-gencode=arch=compute_86,code=compute_86",
            "-DQ2EXPORT_PTX_ARCHITECTURE=86",
        ]

    def test_code_for_hopper_alone_has_no_ptx_and_says_that_it_is_there(self) -> None:
        assert code_flags(("80", "90a")) == [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_90a,code=sm_90a",
            "-gencode=arch=compute_80,code=compute_80",
            "-DQ2EXPORT_PTX_ARCHITECTURE=80",
            "-DQ2EXPORT_HAS_SM90A",
        ]

    def test_cmake_builds_for_the_same(self) -> None:
        text = (ROOT / "plugins" / "CMakeLists.txt").read_text(encoding="utf-8")
        (listed,) = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES (.*)\)", text)
        *real, last = listed.split()
        assert [each.removesuffix("-real") for each in real] + [last] == list(ARCHITECTURES)
        assert all(each.endswith("-real") for each in real), "PTX of the last one alone"


class TestPlan:
    def test_takes_cuda_home_before_path_before_packages(self, tmp_path: Path) -> None:
        home, path = fake_nvcc.install(tmp_path / "home"), fake_nvcc.install(tmp_path / "path")
        package = fake_nvcc.install(tmp_path / "site" / "nvidia" / "cu13")
        environment = {"CUDA_HOME": str(tmp_path / "home"), "PATH": str(path.parent), **ALL}
        packages = [str(tmp_path / "site")]
        assert plan(environment, packages).compiler.path == home
        del environment["CUDA_HOME"]
        assert plan(environment, packages).compiler.path == path
        assert plan(ALL, packages).compiler.path == package

    def test_a_compiler_that_does_not_run_is_passed_over(self, tmp_path: Path) -> None:
        broken, works = fake_nvcc.install(tmp_path / "broken"), fake_nvcc.install(tmp_path / "works")
        broken.write_text("#!/bin/sh\nexit 1\n")
        environment = {"CUDA_HOME": str(tmp_path / "broken"), "PATH": str(works.parent), **ALL}
        assert plan(environment, ()).compiler.path == works

    def test_without_a_compiler_says_where_it_looked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "is_file", lambda self: False)
        with pytest.raises(
            NoKernelsError, match="no CUDA compiler: looked for /opt/cuda/bin/nvcc, nvcc, /usr/local"
        ):
            plan({"CUDA_HOME": "/opt/cuda", **ALL}, ())

    def test_an_old_compiler_leaves_architectures_out(self, tmp_path: Path) -> None:
        fake_nvcc.install(tmp_path, codes="80,86,89,90")
        chosen = plan({"CUDA_HOME": str(tmp_path), **ALL}, ())
        assert (chosen.architectures, chosen.left_out) == (("80", "86", "89", "90a"), ("100", "120"))
        assert str(chosen) == (
            "CUDA 13.0 for sm_80, sm_86, sm_89, sm_90a; not for sm_100, sm_120, which it does not know"
        )
        with pytest.raises(KernelBuildError, match=r"asks for sm_100, which CUDA 13\.0 .* does not know"):
            plan({"CUDA_HOME": str(tmp_path), "Q2EXPORT_CUDA_ARCHITECTURES": "80;100"}, ())
        with pytest.raises(
            NoKernelsError, match=r"generates code for none of sm_100; install CUDA 12\.8 or later"
        ):
            plan({"CUDA_HOME": str(tmp_path), "Q2EXPORT_CUDA_ARCHITECTURES": "100"}, ())

    def test_none_is_none(self) -> None:
        with pytest.raises(NoKernelsError, match="Q2EXPORT_CUDA_ARCHITECTURES is none"):
            plan({"Q2EXPORT_CUDA_ARCHITECTURES": "none"}, ())


class Tree:
    """Two sources and a header that the first one includes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nvcc = fake_nvcc.install(folder)
        self.kernels = folder / "csrc" / "kernels"
        self.output = folder / "lib" / "kernels.so"
        (self.kernels / "op").mkdir(parents=True)
        self.write("op/first.cu", '#include "shared.h"\n')
        self.write("op/second.cu", "second\n")
        self.write("op/shared.h", "header\n")
        self.write("exports.map", "")

    def write(self, name: str, text: str) -> None:
        (self.kernels / name).write_text(text)

    def build(self, architectures: str = "80") -> list[str]:
        """What is compiled, in any order."""
        before = len(fake_nvcc.calls(self.nvcc))
        environment = {"CUDA_HOME": str(self.folder), "Q2EXPORT_CUDA_ARCHITECTURES": architectures}
        chosen = plan(environment, ())
        library = KernelLibrary(
            chosen.compiler, chosen.architectures, self.folder / "objects", csrc=self.folder / "csrc"
        )
        library.build(self.output, jobs=2)
        return sorted(fake_nvcc.calls(self.nvcc)[before:])


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


class TestBuild:
    def test_compiles_what_has_changed(self, tree: Tree) -> None:
        assert tree.build() == ["first", "link", "second"]
        assert "header" in tree.output.read_text()
        assert tree.build() == []
        tree.write("op/second.cu", "changed\n")
        assert tree.build() == ["link", "second"]
        assert "changed" in tree.output.read_text()
        tree.write("op/shared.h", "other header\n")
        assert tree.build() == ["first", "link"]
        tree.write("exports.map", "{};\n")
        assert tree.build() == ["link"]
        (tree.kernels / "op" / "second.cu").unlink()
        assert tree.build() == ["link"]
        assert "changed" not in tree.output.read_text()

    def test_compiles_all_for_other_architectures(self, tree: Tree) -> None:
        tree.build("80")
        assert tree.build("80;86") == ["first", "link", "second"]
        assert "code=sm_80" in tree.output.read_text() and "code=sm_86" in tree.output.read_text()

    def test_keeps_the_library_where_a_source_does_not_compile(self, tree: Tree) -> None:
        tree.build()
        before = tree.output.read_bytes()
        tree.write("op/second.cu", "#error\n")
        for _ in range(2):
            with pytest.raises(KernelBuildError, match=r"nvcc .*second\.cu(.|\n)*#error directive"):
                tree.build()
        assert tree.output.read_bytes() == before
        assert [path.name for path in tree.output.parent.iterdir()] == ["kernels.so"]
        tree.write("op/second.cu", "second\n")
        assert tree.build() == ["link", "second"]

    def test_a_header_that_is_gone_compiles_again(self, tree: Tree) -> None:
        tree.build()
        tree.write("op/first.cu", "no header\n")
        (tree.kernels / "op" / "shared.h").unlink()
        assert tree.build() == ["first", "link"]


def test_the_plugins_are_compiled_against_the_headers_and_linked_with_the_kernels(tree: Tree) -> None:
    # Of a name that a kernel's source has, too.
    for name in ("tensorrt/op/first.cpp", "tensorrt/library.cpp", "tensorrt/exports.map"):
        (tree.folder / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.folder / "csrc" / name).write_text(f"{name}\n")
    with pytest.raises(NoKernelsError, match="TENSORRT_ROOT is not set"):
        tensorrt_include({})
    with pytest.raises(KernelBuildError, match=r"include/NvInferRuntime\.h does not exist"):
        tensorrt_include({"TENSORRT_ROOT": str(tree.folder)})
    (tree.folder / "include").mkdir()
    (tree.folder / "include" / "NvInferRuntime.h").touch()
    tree.build()
    chosen = plan({"CUDA_HOME": str(tree.folder), "Q2EXPORT_CUDA_ARCHITECTURES": "80"}, ())
    kernels = KernelLibrary(
        chosen.compiler, chosen.architectures, tree.folder / "objects", csrc=tree.folder / "csrc"
    )
    library = PluginLibrary(kernels, tensorrt_include({"TENSORRT_ROOT": str(tree.folder)}))
    before = len(fake_nvcc.calls(tree.nvcc))
    for _ in range(2):
        library.build(tree.output.with_name("plugins.so"), jobs=2)
    assert sorted(fake_nvcc.calls(tree.nvcc)[before:]) == ["first", "library", "link"]
    text = tree.output.with_name("plugins.so").read_text()
    assert all(part in text for part in ("second", "tensorrt/op/first.cpp", "tensorrt/library.cpp"))
    assert "tensorrt" not in tree.output.read_text()


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "Q2EXPORT_CUDA_ARCHITECTURES": "none", "Q2EXPORT_CPU_KERNELS": "none"}
    environment.pop("TENSORRT_ROOT", None)
    command = [sys.executable, "-m", "q2export.plugins.kernel_build", "cpu", "cuda", "tensorrt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stderr == (
        "skipped: Q2EXPORT_CPU_KERNELS is none\nskipped: Q2EXPORT_CUDA_ARCHITECTURES is none\n"
        "skipped: TENSORRT_ROOT is not set: plugins in C++ need TensorRT's headers, which no wheel carries\n"
    )
