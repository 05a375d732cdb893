"""Packages the folder ``q2export`` and builds the CUDA and CPU kernels where there are compilers.

``q2export/`` reaches the rooms at the root through links, so that nothing generic lands in site-packages. All
metadata is in ``pyproject.toml``. Which GPUs the kernels are built for: ``Q2EXPORT_CUDA_ARCHITECTURES``, see
``docs/installation.md``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PLUGINS = Path("q2export", "plugins")  # of a checkout and of a source distribution, which has no links
sys.path.insert(0, str(ROOT / PLUGINS))  # what q2export imports need not be installed yet
import kernel_build  # noqa: E402

LIBRARY = PLUGINS / "lib" / kernel_build.LIBRARY.name
RECORD = LIBRARY.with_name(kernel_build.RECORD.name)
reasons: dict[str, str] = {}
"""Why a library is not built, by its ``kind``."""


@cache
def plan() -> kernel_build.Plan | None:
    """What the kernels are built with; None where that is nothing, and ``reason`` says why."""
    try:
        return kernel_build.plan(os.environ)
    except kernel_build.KernelBuildError as error:
        without_kernels(error)
        return None


def without_kernels(error: kernel_build.KernelBuildError) -> None:
    """Go on without the CUDA kernels."""
    variable = kernel_build.ARCHITECTURES_VARIABLE
    way_out = (
        f"{variable}=none installs q2export without them" if kernel_build.is_required(os.environ) else ""
    )
    go_on_without("CUDA kernels", error, way_out)


def go_on_without(kind: str, error: kernel_build.KernelBuildError, way_out: str) -> None:
    """Keep the reason for ``q2export doctor``; end here where they are asked for, that is with a way out."""
    if way_out:
        sys.exit(f"error: no {kind}: {error}\n{way_out}")
    sys.stderr.write(f"q2export without {kind}: {error}\n")
    reasons[kind] = first_error(error)


def first_error(error: kernel_build.KernelBuildError) -> str:
    """In one line: of what does not compile, the compiler's first error."""
    command, *said = str(error).splitlines()
    return next((line for line in said if re.search("error|fatal", line)), command)


class BuildKernels(Command):
    """Part of ``build``: the library of the kernels, and what it was built with or why it was not."""

    description = "compile the CUDA kernels"
    kind, library, record = "CUDA kernels", LIBRARY, RECORD
    user_options = [("build-lib=", "d", "folder of the package to be")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False
        self.built: list[Path] = []

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Build the library, or record why there is none; a tree keeps the library it has."""
        folder = ROOT if self.editable_mode else Path(self.build_lib or "")
        record = folder / self.record
        record.parent.mkdir(parents=True, exist_ok=True)
        if self.compile(folder / self.library):
            record.write_text(f"{self.builder()}\n", encoding="utf-8")
            self.built = [self.library, self.record]
        elif not (self.editable_mode and (folder / self.library).is_file()):
            (folder / self.library).unlink(missing_ok=True)
            record.write_text(f"none: {reasons[self.kind]}\n", encoding="utf-8")
            self.built = [self.record]

    def builder(self) -> object:
        """What describes itself in the record."""
        return plan()

    def compile(self, target: Path) -> bool:
        """Bring the library up to date; False where there is none to be."""
        chosen = plan()
        if chosen is None:
            return False
        self.announce(f"CUDA kernels: {chosen}, by {chosen.compiler.path}", logging.INFO)
        folder = ROOT / "build" / "kernels"
        library = kernel_build.KernelLibrary(chosen.compiler, chosen.architectures, folder)
        built = library.objects / target.name
        try:
            library.build(built, kernel_build.available_cores())
        except kernel_build.KernelBuildError as error:
            without_kernels(error)
            return False
        partial = target.with_suffix(".partial")
        shutil.copy2(built, partial)
        partial.replace(target)
        return True

    def get_source_files(self) -> list[str]:
        """For source distributions: what the kernels and the C++ plugins are built from."""
        folders = [ROOT / PLUGINS / name for name in ("csrc", "cmake")]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        return [str(path.relative_to(ROOT)) for path in [*files, ROOT / PLUGINS / "CMakeLists.txt"]]

    def get_outputs(self) -> list[str]:
        """Files of the package to be."""
        return [str(Path(self.build_lib or "", each)) for each in self.built]

    def get_output_mapping(self) -> dict[str, str]:
        """The same, and where they are for an editable installation."""
        return {str(Path(self.build_lib or "", each)): str(each) for each in self.built}


class BuildPlugins(BuildKernels):
    """Part of ``build``: the TensorRT plugins in C++, where there are TensorRT's headers, too."""

    description = "compile the TensorRT plugins"
    kind = "TensorRT plugins in C++"
    library = PLUGINS / "lib" / kernel_build.PLUGIN_LIBRARY.name
    record = library.with_name(kernel_build.PLUGIN_RECORD.name)

    def compile(self, target: Path) -> bool:
        """Bring the library up to date; False where there is none to be."""
        chosen = plan()
        try:
            if chosen is None:
                raise kernel_build.NoKernelsError(f"they need the CUDA kernels: {reasons['CUDA kernels']}")
            include = kernel_build.tensorrt_include(os.environ)
            folder = ROOT / "build" / "kernels"
            kernels = kernel_build.KernelLibrary(chosen.compiler, chosen.architectures, folder)
            self.announce(f"TensorRT plugins: {include}", logging.INFO)
            kernel_build.PluginLibrary(kernels, include).build(target, kernel_build.available_cores())
        except kernel_build.NoKernelsError as reason:
            go_on_without(self.kind, reason, "")
            return False
        except kernel_build.KernelBuildError as error:
            variable = kernel_build.TENSORRT_VARIABLE
            go_on_without(self.kind, error, f"without {variable}, q2export is installed without them")
            return False
        return True


CPU_LIBRARY = PLUGINS / "lib" / kernel_build.CPU_LIBRARY.name
CPU_RECORD = CPU_LIBRARY.with_name(kernel_build.CPU_RECORD.name)


@cache
def cpu_library() -> kernel_build.CpuLibrary | None:
    """The library for ONNX Runtime on the CPU; None where there is nothing to build it with."""
    try:
        return kernel_build.cpu_library(os.environ, ROOT / "build" / "cpu")
    except kernel_build.KernelBuildError as error:
        without_cpu_kernels(error)
        return None


def without_cpu_kernels(error: kernel_build.KernelBuildError) -> None:
    """Go on without the CPU kernels: engines then run the function bodies."""
    required = kernel_build.cpu_is_required(os.environ)
    way_out = f"{kernel_build.CPU_VARIABLE}=none installs q2export without them" if required else ""
    go_on_without("CPU kernels", error, way_out)


class BuildCpuKernels(BuildKernels):
    """Part of ``build``: the custom ops for ONNX Runtime on the CPU, and what they were built with."""

    description = "compile the CPU kernels"
    kind, library, record = "CPU kernels", CPU_LIBRARY, CPU_RECORD

    def builder(self) -> object:
        """What describes itself in the record."""
        return cpu_library()

    def compile(self, target: Path) -> bool:
        """Bring the library up to date; False where there is none to be."""
        library = cpu_library()
        if library is None:
            return False
        self.announce(f"CPU kernels, by {library}", logging.INFO)
        try:
            library.build(target, kernel_build.available_cores())
        except kernel_build.KernelBuildError as error:
            without_cpu_kernels(error)
            return False
        return True


class BuildEngine(BuildKernels):
    """Part of ``build``: libq2export.so with its headers and what finds them, as a CMake prefix."""

    description = "compile the C++ runtime"
    kind = "C++ runtime"
    cpp = Path("q2export", "runtime", "cpp")
    library = cpp / "prefix" / "lib" / kernel_build.ENGINE_LIBRARY
    record = cpp / kernel_build.ENGINE_RECORD

    def run(self) -> None:
        """As for the kernels; the record is of the library, and the prefix holds more files than it."""
        self.files: list[Path] = []
        super().run()
        self.built = [each for each in self.built if each != self.library] + self.files

    def builder(self) -> object:
        """What describes itself in the record."""
        return engine_library()

    def compile(self, target: Path) -> bool:
        """Bring the prefix up to date; False where there is none to be."""
        prefix = target.parents[1]
        library = engine_library()
        if library is None:
            if not self.editable_mode:
                shutil.rmtree(prefix, ignore_errors=True)  # that of an earlier build
            return False
        self.announce(f"C++ runtime, by {library.compiler}", logging.INFO)
        try:
            made = library.install(prefix, kernel_build.available_cores())
        except kernel_build.KernelBuildError as error:
            without_engine(error)
            return False
        self.files = [self.library.parents[1] / each for each in made]
        return True

    def get_source_files(self) -> list[str]:
        """For source distributions: what the library is built from."""
        folders = [ROOT / self.cpp / name for name in ("src", "include", "cmake")]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        files += [path for path in [ROOT / self.cpp / "CMakeLists.txt"] if path.is_file()]
        return [str(path.relative_to(ROOT)) for path in files]


@cache
def engine_library() -> kernel_build.EngineLibrary | None:
    """The C++ runtime; None where there is nothing to build it with."""
    try:
        return kernel_build.engine_library(os.environ, ROOT / "build" / "cpp", ROOT / BuildEngine.cpp)
    except kernel_build.KernelBuildError as error:
        without_engine(error)
        return None


def without_engine(error: kernel_build.KernelBuildError) -> None:
    """Go on without the C++ runtime: engines run in Python alone."""
    variable = kernel_build.ENGINE_VARIABLE
    required = kernel_build.is_asked_for(os.environ, variable)
    go_on_without(
        BuildEngine.kind, error, f"{variable}=none installs q2export without it" if required else ""
    )


class Build(build):
    """Python files, then kernels."""

    sub_commands = [
        *build.sub_commands,
        *((name, None) for name in ("build_kernels", "build_plugins", "build_cpu_kernels", "build_engine")),
    ]


class Wheel(bdist_wheel):
    """With kernels a wheel is of one platform, but of no Python version: they are loaded with ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class PackageWithKernels(Distribution):
    """Not pure Python where there are kernels."""

    def has_ext_modules(self) -> bool:
        return any(built() is not None for built in (plan, cpu_library, engine_library))


setup(
    packages=find_packages(include=["q2export", "q2export.*"]),
    package_dir={
        "": "."
    },  # so that an editable installation is one path, which type checkers and IDEs follow
    distclass=PackageWithKernels,
    cmdclass={
        "bdist_wheel": Wheel,
        "build": Build,
        "build_kernels": BuildKernels,
        "build_plugins": BuildPlugins,
        "build_cpu_kernels": BuildCpuKernels,
        "build_engine": BuildEngine,
    },
)
