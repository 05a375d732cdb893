"""Compile ``csrc/kernels`` into one library, again only what has changed."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .compiler import Compiler, KernelBuildError, code_flags

CSRC = Path(__file__).resolve().parents[1] / "csrc"
"""Sources of the kernels; a wheel has none."""

LIBRARY = CSRC.with_name("lib") / "libq2export_kernels.so"
"""Where the package has its kernels."""

RECORD = LIBRARY.with_suffix(".txt")
"""Beside it: what it was built with, or why it was not."""

_FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", "-Xptxas=-v")
_LINK_FLAGS = ("-shared", "-cudart=static", "-Xlinker=--no-undefined")


@dataclass(frozen=True)
class KernelLibrary:
    """The library of one compiler, for some architectures.

    Attributes:
        compiler: the nvcc.
        architectures: compute capabilities, ascending; not empty.
        folder: of what is kept between builds.
        csrc: the folder of the sources.
    """

    compiler: Compiler
    architectures: tuple[str, ...]
    folder: Path
    csrc: Path = CSRC

    @property
    def objects(self) -> Path:
        """The folder of the object files.

        Beside each: its dependencies (``.d``), its command (``.command``) and what the compiler said of it,
        that is warnings, registers and spills (``.log``).
        """
        return self.folder / "-".join(self.architectures)

    @property
    def sources(self) -> list[Path]:
        """The kernels, and what makes custom ops for ONNX Runtime of them."""
        return sorted(self.csrc.glob("kernels/*/*.cu")) + ort_glue(self.csrc)

    def build(self, output: Path, jobs: int) -> None:
        """Bring the library at ``output`` up to date.

        Args:
            output: file to write; the old one stays where a source does not compile.
            jobs: how many compilers may run at once; each takes about 250 MB.

        Raises:
            KernelBuildError: a source does not compile, or the library does not link; the compiler's words.
        """
        objects = self.compile(self.sources, jobs)
        self.link(output, objects, self.csrc / "kernels" / "exports.map")

    def compile(self, sources: Sequence[Path], jobs: int, flags: Sequence[str] = ()) -> list[Path]:
        """Bring the object files of ``sources`` up to date, in :attr:`objects`, and return them.

        Args:
            sources: the kernels' own, or others that include their headers.
            jobs: as in :meth:`build`.
            flags: further options of nvcc.

        Raises:
            KernelBuildError: a source does not compile; the compiler's words.
        """
        self.objects.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            return list(pool.map(lambda source: self._compile(source, flags), sources))

    def link(
        self,
        output: Path,
        objects: Sequence[Path],
        exports: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Make a library of object files, unless there is one that is newer, of the same command.

        Args:
            output: file to write.
            objects: of :meth:`compile`.
            exports: linker script that says which functions are visible; None is what the sources say.
            options: further options of nvcc.

        Raises:
            KernelBuildError: it does not link; the linker's words.
        """
        scripts = [] if exports is None else [exports]
        visible = [f"-Xlinker=--version-script={path}" for path in scripts]
        command = [*self._nvcc(), *_LINK_FLAGS, *visible, *options, *map(str, objects)]
        record = self.objects / f"{output.stem}.command"
        if is_current(output, [*objects, *scripts], record, command):
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_suffix(".partial")
        run_compiler([*command, "-o", str(partial)])
        os.replace(partial, output)
        record.write_text(command_text(command), encoding="utf-8")

    def log(self) -> str:
        """What the compiler said of all sources, when each was last compiled."""
        return "".join(self._object(each).with_suffix(".log").read_text("utf-8") for each in self.sources)

    def _object(self, source: Path) -> Path:
        inside = source.relative_to(self.csrc) if source.is_relative_to(self.csrc) else Path(source.name)
        return self.objects / f"{'-'.join(inside.with_suffix('').parts)}.o"

    def _nvcc(self) -> list[str]:
        return [str(self.compiler.path), *code_flags(self.architectures)]

    def _compile(self, source: Path, flags: Sequence[str]) -> Path:
        target = self._object(source)
        depends, record = target.with_suffix(".d"), target.with_suffix(".command")
        includes = [f"-I{self.csrc / name}" for name in ("include", "kernels", "onnxruntime")]
        command = [*self._nvcc(), *_FLAGS, *includes, *flags, "-c", str(source)]
        version = f"nvcc {self.compiler.version}"
        if is_current(target, dependencies(depends), record, [version, *command]):
            return target
        started = time.time_ns()
        partial = target.with_suffix(".partial.o")
        said = run_compiler([*command, "-MD", "-MF", str(depends), "-o", str(partial)])
        target.with_suffix(".log").write_text(said, encoding="utf-8")
        os.utime(partial, ns=(started, started))  # older than a source that is edited meanwhile
        os.replace(partial, target)
        record.write_text(command_text([version, *command]), encoding="utf-8")
        return target


def ort_glue(csrc: Path) -> list[Path]:
    """The sources of the custom ops for ONNX Runtime's CUDA provider."""
    own = sorted(csrc.glob("onnxruntime_cuda/*.cpp"))
    return [*own, *(csrc / "onnxruntime" / f"{name}.cpp" for name in ("domain", "node", "tensor") if own)]


def recorded(path: Path = RECORD) -> str:
    """What the kernels of this installation were built with, or why there are none, in one line."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        is_there = path.with_suffix(LIBRARY.suffix).is_file()
        return "built, without a record of how" if is_there else "not built"


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def run_compiler(command: Sequence[str]) -> str:
    """Run a compiler and return what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise KernelBuildError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def command_text(command: Sequence[str]) -> str:
    """A command as it is recorded beside what it made."""
    return shlex.join(command) + "\n"


def is_current(target: Path, depends: Sequence[Path], record: Path, command: Sequence[str]) -> bool:
    """Whether a file is newer than what it was made from, by the same command."""
    if not (depends and target.is_file() and record.is_file()):
        return False
    if record.read_text(encoding="utf-8") != command_text(command):
        return False
    made = target.stat().st_mtime_ns
    return all(each.is_file() and each.stat().st_mtime_ns <= made for each in depends)


def dependencies(path: Path) -> list[Path]:
    """The files that a dependency file, a rule of make, names; none where there is no such file."""
    if not path.is_file():
        return []
    _, _, files = path.read_text(encoding="utf-8").partition(":")
    return [Path(each) for each in files.replace("\\\n", " ").split()]
