"""The TensorRT plugins in C++, with the kernels in them: one library, compiled against TensorRT's headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .compiler import KernelBuildError, NoKernelsError
from .library import CSRC, KernelLibrary

PLUGIN_LIBRARY = CSRC.with_name("lib") / "libq2export_plugins.so"
"""Where the package has its plugins in C++."""

PLUGIN_RECORD = PLUGIN_LIBRARY.with_suffix(".txt")
"""Beside it: what it was built with, or why it was not."""

TENSORRT_VARIABLE = "TENSORRT_ROOT"
"""Environment variable: the folder whose ``include`` has TensorRT's headers. No wheel carries them."""


@dataclass(frozen=True)
class PluginLibrary:
    """The library of one compiler and one set of headers.

    Attributes:
        kernels: what the plugins call; compiled into the library.
        include: folder of ``NvInferRuntime.h``.
    """

    kernels: KernelLibrary
    include: Path

    def __str__(self) -> str:
        return f"TensorRT's headers in {self.include}"

    @property
    def sources(self) -> list[Path]:
        """The C++ sources of the plugins."""
        return sorted(self.kernels.csrc.glob("tensorrt/**/*.cpp"))

    def build(self, output: Path, jobs: int) -> None:
        """Bring the library at ``output`` up to date.

        Args:
            output: file to write; the old one stays where a source does not compile.
            jobs: how many compilers may run at once.

        Raises:
            KernelBuildError: a source does not compile, or the library does not link; the compiler's words.
        """
        csrc = self.kernels.csrc
        kernels = [source for source in self.kernels.sources if source.suffix == ".cu"]  # without ORT's ops
        objects = self.kernels.compile(kernels, jobs)
        includes = [f"-I{csrc / 'tensorrt'}", "-isystem", str(self.include)]
        plugins = self.kernels.compile(self.sources, jobs, includes)
        # A registry may hold the creators even after TensorRT has unloaded the library.
        options = ["-Xlinker=-z", "-Xlinker=nodelete", "-ldl"]
        self.kernels.link(output, [*objects, *plugins], csrc / "tensorrt" / "exports.map", options)


def tensorrt_include(environment: Mapping[str, str]) -> Path:
    """Return the folder of TensorRT's headers.

    Raises:
        NoKernelsError: the environment names none. KernelBuildError: it names one that has no such headers.
    """
    root = environment.get(TENSORRT_VARIABLE, "").strip()
    if not root:
        raise NoKernelsError(
            f"{TENSORRT_VARIABLE} is not set: plugins in C++ need TensorRT's headers, which no wheel carries"
        )
    include = Path(root) / "include"
    if not (include / "NvInferRuntime.h").is_file():
        raise KernelBuildError(f"{TENSORRT_VARIABLE}: {include / 'NvInferRuntime.h'} does not exist")
    return include.resolve()
