"""Which CUDA compiler builds the kernels, and for which GPUs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")
"""A100; RTX 30; Ada (L4, L40S, RTX 40); Hopper, with its own instructions; Blackwell (B200; RTX 50)."""

ARCHITECTURES_VARIABLE = "Q2EXPORT_CUDA_ARCHITECTURES"
"""Environment variable: compute capabilities ("80;90"), the GPUs present ("native"), "all" or "none".

Without it the kernels are built for the GPUs present, where that is possible.
"""

_LOWEST = 80  # asynchronous copies


class KernelBuildError(Exception):
    """The kernels cannot be built as asked; the message says why and what to do."""


class NoKernelsError(KernelBuildError):
    """Nothing is wrong, but there is nothing to build: not asked for, no compiler, or one that is too old."""


@dataclass(frozen=True)
class Compiler:
    """An nvcc.

    Attributes:
        path: of the program.
        version: as it says, "13.0".
        architectures: targets it generates code for.
    """

    path: Path
    version: str
    architectures: frozenset[str]

    def knows(self, architecture: str) -> bool:
        """Whether it generates code for a target."""
        return architecture.rstrip("af") in self.architectures


@dataclass(frozen=True)
class Plan:
    """What to build the kernels with.

    Attributes:
        compiler: the nvcc.
        architectures: targets to build for, ascending; at least one.
        left_out: those that were asked for and that the compiler does not know.
    """

    compiler: Compiler
    architectures: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        missing = f"; not for {_names(self.left_out)}, which it does not know" if self.left_out else ""
        return f"CUDA {self.compiler.version} for {_names(self.architectures)}{missing}"


def is_required(environment: Mapping[str, str]) -> bool:
    """Whether kernels are asked for, so that an installation without them has failed."""
    return _value(environment) not in ("", "none")


def plan(environment: Mapping[str, str], packages: Sequence[str] = tuple(sys.path)) -> Plan:
    """Return what to build the kernels with.

    Args:
        environment: variables of the process.
        packages: folders that may hold the package nvidia-cuda-nvcc.

    Raises:
        NoKernelsError: there is nothing to build, or nothing to build it with.
        KernelBuildError: the environment asks for what cannot be.
    """
    wanted = wanted_architectures(environment)
    if not wanted:
        raise NoKernelsError(f"{ARCHITECTURES_VARIABLE} is none")
    compiler = find_compiler(environment, packages)
    known = tuple(each for each in wanted if compiler.knows(each))
    left_out = tuple(each for each in wanted if each not in known)
    if not known:
        raise NoKernelsError(
            f"CUDA {compiler.version} ({compiler.path}) generates code for none of {_names(left_out)}; "
            "install CUDA 12.8 or later"
        )
    if left_out and _value(environment) not in ("", "all"):
        raise KernelBuildError(
            f"{ARCHITECTURES_VARIABLE} asks for {_names(left_out)}, which CUDA {compiler.version} "
            f"({compiler.path}) does not know; install CUDA 12.8 or later, or leave it out"
        )
    return Plan(compiler, known, left_out)


def find_compiler(environment: Mapping[str, str], packages: Sequence[str] = tuple(sys.path)) -> Compiler:
    """Return the first nvcc that runs: of CUDA_HOME or CUDA_PATH, on PATH, of PyPI, of the usual folder.

    Raises:
        NoKernelsError: there is none; the message says where it was looked for.
    """
    tried = []
    for path in _candidates(environment, packages):
        tried.append(str(path))
        if path.is_file():
            try:
                return _ask(path)
            except (OSError, subprocess.CalledProcessError) as error:
                tried[-1] += f" (does not run: {error})"
    raise NoKernelsError(
        f"no CUDA compiler: looked for {', '.join(tried)}; install the CUDA toolkit, 12.8 or later, and set "
        "CUDA_HOME, or pip install nvidia-cuda-nvcc nvidia-cuda-cccl and install with --no-build-isolation"
    )


def _candidates(environment: Mapping[str, str], packages: Sequence[str]) -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environment.get(variable):
            yield Path(environment[variable]) / "bin" / "nvcc"
    on_path = shutil.which("nvcc", path=environment.get("PATH", ""))
    yield Path(on_path or "nvcc")
    for folder in packages:
        yield from sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"), reverse=True)
    yield Path("/usr/local/cuda/bin/nvcc")


def _ask(path: Path) -> Compiler:
    """Ask an nvcc what it is."""

    def output(option: str) -> str:
        return subprocess.run([path, option], capture_output=True, text=True, check=True).stdout

    version = re.search(r"release ([\d.]+)", output("--version"))
    codes = re.findall(r"^sm_(\w+)$", output("--list-gpu-code"), re.MULTILINE)
    return Compiler(path, version[1] if version else "unknown", frozenset(codes))


def wanted_architectures(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the targets to build for, in ascending order; none is no kernels.

    Raises:
        NoKernelsError: nothing is asked for, and there is no GPU that the kernels run on.
        KernelBuildError: the environment's value is no list of targets, or is native where there is no GPU.
    """
    value = _value(environment)
    if value == "none":
        return ()
    if value == "all":
        return ARCHITECTURES
    if value in ("", "native"):
        return _targets(_present(required=value == "native"))
    named = [each for each in re.split(r"[;,\s]+", value) if each]
    for each in named:
        if not re.fullmatch(r"\d{2,3}[af]?", each) or _number(each)[0] < _LOWEST:
            raise KernelBuildError(
                f"{ARCHITECTURES_VARIABLE} has {each!r}, expected compute capabilities from 80 on such as "
                "'80;90', or native, all or none"
            )
    return _targets(named)


def _present(required: bool) -> list[str]:
    """Compute capabilities of the GPUs present that the kernels run on; at least one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        if required:
            raise KernelBuildError(
                f"{ARCHITECTURES_VARIABLE} is native, but nvidia-smi names no GPU ({error}); "
                "name the compute capability"
            ) from error
        found = []
    numbers = [each.replace(".", "") for each in found if re.fullmatch(r"\d+\.\d", each)]
    usable = [each for each in numbers if int(each) >= _LOWEST]
    if not usable:
        gpus = f"only GPUs of compute capability {', '.join(found)}" if found else "no GPU"
        raise NoKernelsError(
            f"there is {gpus} here; {ARCHITECTURES_VARIABLE}='80;90' builds for these compute capabilities "
            "all the same, 'all' for all from 80 on"
        )
    return usable


def _value(environment: Mapping[str, str]) -> str:
    return environment.get(ARCHITECTURES_VARIABLE, "").strip().lower()


def _targets(capabilities: Sequence[str]) -> tuple[str, ...]:
    # There is one Hopper, so that its own instructions can be had whenever it is asked for.
    return tuple(sorted({"90a" if each == "90" else each for each in capabilities}, key=_number))


def code_flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's options: machine code for each target, PTX of the last one for GPUs that come after it.

    Code for the instructions of one GPU alone ("90a") has no PTX that later ones could run.
    """
    flags = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in architectures]
    portable = [each for each in architectures if each.isdigit()]
    for each in portable[-1:]:
        flags += [f"-gencode=arch=compute_{each},code=compute_{each}", f"-DQ2EXPORT_PTX_ARCHITECTURE={each}"]
    return flags + (["-DQ2EXPORT_HAS_SM90A"] if "90a" in architectures else [])


def _names(architectures: Sequence[str]) -> str:
    return ", ".join(f"sm_{each}" for each in architectures)


def _number(architecture: str) -> tuple[int, str]:
    digits = architecture.rstrip("af")
    return int(digits), architecture[len(digits) :]
