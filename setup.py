"""Packages the folder ``q2export`` and builds the CUDA kernels where there is a compiler.

``q2export/`` reaches the rooms at the root through links, so that nothing generic lands in site-packages. All
metadata is in ``pyproject.toml``. Which GPUs the kernels are built for: ``Q2EXPORT_CUDA_ARCHITECTURES``, see
``docs/installation.md``.
"""

from __future__ import annotations

import logging
import os
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

LIBRARY = PLUGINS / "lib" / "libq2export_kernels.so"


@cache
def plan() -> kernel_build.Plan | None:
    """What the kernels are built with; None, and a line that says why, where that is nothing."""
    try:
        return kernel_build.plan(os.environ)
    except kernel_build.NoKernelsError as reason:
        sys.stderr.write(f"q2export without CUDA kernels: {reason}\n")
        return None
    except kernel_build.KernelBuildError as error:
        sys.exit(f"error: {error}")


class BuildKernels(Command):
    """Part of ``build``: the library of the kernels."""

    description = "compile the CUDA kernels"
    user_options = [("build-lib=", "d", "folder of the package to be")]

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        chosen = plan()
        target = ROOT / LIBRARY if self.editable_mode else self.packaged()
        if chosen is None:
            if not self.editable_mode:  # that of an earlier build is not this one's
                target.unlink(missing_ok=True)
            return
        self.announce(f"CUDA kernels by {chosen}", logging.INFO)
        library = kernel_build.KernelLibrary(
            chosen.compiler, chosen.architectures, ROOT / "build" / "kernels"
        )
        built = library.objects / target.name
        try:
            library.build(built, kernel_build.available_cores())
        except kernel_build.KernelBuildError as error:
            sys.exit(
                f"error: the CUDA kernels do not build: {error}\n"
                f"{kernel_build.ARCHITECTURES_VARIABLE}=none installs q2export without them"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copy2(built, partial)
        partial.replace(target)

    def packaged(self) -> Path:
        """Where the library is in the package to be."""
        return Path(self.build_lib or "", LIBRARY)

    def get_source_files(self) -> list[str]:
        """For source distributions: what the kernels and the C++ plugins are built from."""
        folders = [ROOT / PLUGINS / name for name in ("csrc", "cmake")]
        files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        return [str(path.relative_to(ROOT)) for path in [*files, ROOT / PLUGINS / "CMakeLists.txt"]]

    def get_outputs(self) -> list[str]:
        """Files of the package to be."""
        return [] if plan() is None else [str(self.packaged())]

    def get_output_mapping(self) -> dict[str, str]:
        """The same, and where they are for an editable installation."""
        return dict.fromkeys(self.get_outputs(), str(LIBRARY))


class Build(build):
    """Python files, then kernels."""

    sub_commands = [*build.sub_commands, ("build_kernels", None)]


class Wheel(bdist_wheel):
    """With kernels a wheel is of one platform, but of no Python version: they are loaded with ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class PackageWithKernels(Distribution):
    """Not pure Python where there are kernels."""

    def has_ext_modules(self) -> bool:
        return plan() is not None


setup(
    packages=find_packages(include=["q2export", "q2export.*"]),
    package_dir={
        "": "."
    },  # so that an editable installation is one path, which type checkers and IDEs follow
    distclass=PackageWithKernels,
    cmdclass={"bdist_wheel": Wheel, "build": Build, "build_kernels": BuildKernels},
)
