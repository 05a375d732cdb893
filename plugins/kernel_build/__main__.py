"""``python -m q2export.plugins.kernel_build [cpu] [cuda] [tensorrt] [engine]``: build libraries in place."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from .compiler import KernelBuildError, NoKernelsError, plan
from .cpu import CPU_LIBRARY, CPU_RECORD, cpu_library
from .engine import ENGINE_RECORD, engine_library
from .library import CSRC, LIBRARY, RECORD, KernelLibrary, available_cores
from .tensorrt import PLUGIN_LIBRARY, PLUGIN_RECORD, PluginLibrary, tensorrt_include


def main() -> int:
    """Build, and say what was built, or why not; 1 where a build fails, or none could be started."""
    parser = argparse.ArgumentParser(prog="python -m q2export.plugins.kernel_build", description=__doc__)
    parser.add_argument("libraries", nargs="*", help=f"Of {', '.join(_BUILDS)}; all of them unless named.")
    names = parser.parse_args().libraries or list(_BUILDS)
    unknown = [name for name in names if name not in _BUILDS]
    if unknown:
        parser.error(f"no library {unknown[0]!r}, expected {' or '.join(_BUILDS)}")
    if not CSRC.is_dir():
        sys.stderr.write(f"error: {CSRC} is absent: run this in the source tree\n")
        return 1
    missing = 0
    for name in names:
        try:
            sys.stdout.write(f"{_BUILDS[name](CSRC.parents[1] / 'build')}\n")
        except NoKernelsError as reason:
            sys.stderr.write(f"skipped: {reason}\n")
            missing += 1
        except KernelBuildError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    return 1 if missing == len(names) else 0


def _build_cpu(folder: Path) -> str:
    library = cpu_library(os.environ, folder / "cpu")
    library.build(CPU_LIBRARY, available_cores())
    CPU_RECORD.write_text(f"{library}\n", encoding="utf-8")
    return f"{CPU_LIBRARY}: {library}"


def _build_cuda(folder: Path) -> str:
    chosen = plan(os.environ)
    KernelLibrary(chosen.compiler, chosen.architectures, folder / "kernels").build(LIBRARY, available_cores())
    RECORD.write_text(f"{chosen}\n", encoding="utf-8")
    return f"{LIBRARY}: {chosen}"


def _build_tensorrt(folder: Path) -> str:
    include = tensorrt_include(os.environ)
    chosen = plan(os.environ)
    kernels = KernelLibrary(chosen.compiler, chosen.architectures, folder / "kernels")
    library = PluginLibrary(kernels, include)
    library.build(PLUGIN_LIBRARY, available_cores())
    PLUGIN_RECORD.write_text(f"{chosen}, {library}\n", encoding="utf-8")
    return f"{PLUGIN_LIBRARY}: {chosen}, {library}"


def _build_engine(folder: Path) -> str:
    cpp = CSRC.parents[1] / "runtime" / "cpp"
    library = engine_library(os.environ, folder / "cpp", cpp)
    library.install(cpp / "prefix", available_cores())
    (cpp / ENGINE_RECORD).write_text(f"{library}\n", encoding="utf-8")
    return f"{cpp / 'prefix'}: {library}"


_BUILDS: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {"cpu": _build_cpu, "cuda": _build_cuda, "tensorrt": _build_tensorrt, "engine": _build_engine}
)


if __name__ == "__main__":
    sys.exit(main())
