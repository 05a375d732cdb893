"""Registers, spills and shared memory of every kernel: ``python -m benchmarks.kernels.resources``.

Compiles for all architectures, or those of ``Q2EXPORT_CUDA_ARCHITECTURES``, and reads what ptxas says and,
where cuobjdump is installed, what it has made of Hopper's prefill. Needs no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels import sass
from benchmarks.machine import commit
from q2export.plugins.kernel_build import (
    ARCHITECTURES_VARIABLE,
    KernelBuildError,
    KernelLibrary,
    available_cores,
    plan,
)

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "kernels"

# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MAX_WARPS = {"80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "120": 48}
REGISTERS_PER_QUARTER = 16384  # of a multiprocessor; each warp has its registers in one of them
REGISTERS_AT_A_TIME = 256  # a warp's registers are allocated in such units


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture.

    Attributes:
        kernel: its name with template arguments, without parameters and namespace.
        architecture: "90a" for sm_90a.
        registers: per thread.
        shared_bytes: static, per block; dynamic shared memory is chosen at each launch.
        stack_bytes: local memory per thread, spilled registers included.
        spill_store_bytes: stored to local memory for want of registers, by all instructions of the program.
        spill_load_bytes: the same, loaded.
    """

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def is_reference(self) -> bool:
        """Whether it is for the shapes that no fast kernel takes."""
        return self.kernel.startswith("reference_")

    @property
    def spills(self) -> bool:
        """Whether registers go to local memory."""
        return self.spill_store_bytes + self.spill_load_bytes > 0

    @property
    def resident_warps(self) -> int:
        """Most warps of a multiprocessor that the registers allow."""
        per_warp = -(-self.registers * 32 // REGISTERS_AT_A_TIME) * REGISTERS_AT_A_TIME
        most = MAX_WARPS[self.architecture.rstrip("af")]
        return min(most, 4 * (REGISTERS_PER_QUARTER // max(per_warp, REGISTERS_AT_A_TIME)))


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'\n"
    r"(?:.*\n)*?"
    r" *(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill .*\n"
    r".*Used (?P<registers>\d+) registers(?P<rest>.*)"
)


def parse(text: str) -> list[Resources]:
    """Read what ``ptxas -v`` said, names as they are in the object file."""
    found = []
    for match in _ENTRY.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        numbers = (int(match[key]) for key in ("stack", "stores", "loads"))
        shared_bytes = int(shared[1]) if shared else 0
        found.append(
            Resources(match["name"], match["architecture"], int(match["registers"]), shared_bytes, *numbers)
        )
    return found


def demangled(records: Sequence[Resources]) -> list[Resources]:
    """The same with names as in the sources, where binutils is installed; sorted by name and architecture."""
    names = [record.kernel for record in records]
    if shutil.which("c++filt") is not None:
        done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
        names = [_short(name) for name in done.stdout.splitlines()]
    renamed = [
        Resources(**{**asdict(each), "kernel": name}) for each, name in zip(records, names, strict=True)
    ]
    return sorted(renamed, key=lambda each: (each.kernel, int(each.architecture.rstrip("af"))))


def _short(name: str) -> str:
    """Without return type, namespaces and parameters, which tell no two kernels apart."""
    name = re.sub(r"\(anonymous namespace\)::|q2export::|^void ", "", name)
    depth = 0
    for position, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:position]
    return name


def build(environment: Mapping[str, str]) -> KernelLibrary:
    """Compile what is not compiled yet.

    Raises:
        KernelBuildError: there is no compiler, or a kernel does not compile.
    """
    chosen = plan(environment)
    folder = REPOSITORY / "build" / "kernels"
    library = KernelLibrary(
        chosen.compiler, chosen.architectures, folder, csrc=REPOSITORY / "plugins" / "csrc"
    )
    library.build(library.objects / "libq2export_kernels.so", available_cores())
    return library


def problems(log: str) -> list[str]:
    """What is wrong with kernels other than those for reference: spills; warnings of any."""
    found = re.findall(r"^.*(?:warning|Potential Performance Loss).*$", log, re.MULTILINE)
    for each in demangled(parse(log)):
        if each.spills and not each.is_reference:
            found.append(f"{each.kernel} on sm_{each.architecture}: {_cell(each)}")
    return found


def report(records: Iterable[Resources], library: KernelLibrary) -> dict[str, Any]:
    """What ``resources.json`` holds."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(REPOSITORY),
        "command": "python -m benchmarks.kernels.resources",
        "nvcc": library.compiler.version,
        "architectures": library.architectures,
        "kernels": [{**asdict(each), "resident_warps": each.resident_warps} for each in records],
    }


def as_json(result: Mapping[str, Any]) -> str:
    """A report as JSON, with a line for each kernel and architecture."""
    head = json.dumps({**result, "kernels": None}, indent=1)
    lines = ",\n".join(f"  {json.dumps(each)}" for each in result["kernels"])
    return head.replace('"kernels": null', f'"kernels": [\n{lines}\n ]') + "\n"


def table(records: Sequence[Resources], result: dict[str, Any]) -> str:
    """``resources.md``: one line per kernel, one column per architecture."""
    architectures = list(result["architectures"])
    cells: dict[str, dict[str, Resources]] = {}
    for record in records:
        cells.setdefault(record.kernel, {})[record.architecture] = record
    spilling = [each for each in records if each.spills]
    lines = [
        "# Registers and spills",
        "",
        "Registers per thread, and in brackets the most warps of a multiprocessor that they allow (of "
        + ", ".join(f"{MAX_WARPS[each.rstrip('af')]} on sm_{each}" for each in architectures)
        + "). Dynamic shared memory is chosen at each launch and is not in the table.",
        "",
        f"Made by `{result['command']}` with nvcc {result['nvcc']} at commit {result['commit']}; "
        f"{len(cells)} kernels, of whose {len(records)} compilations {len(spilling)} spill. "
        "The same as data: [resources.json](resources.json).",
        "",
        "| kernel | static shared memory | " + " | ".join(f"sm_{each}" for each in architectures) + " |",
        "|---|---|" + "---|" * len(architectures),
    ]
    for kernel, by_architecture in cells.items():
        shared = max(each.shared_bytes for each in by_architecture.values())
        texts = [_cell(by_architecture.get(each)) for each in architectures]
        lines.append(f"| `{kernel}` | {shared or ''} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(record: Resources | None) -> str:
    if record is None:
        return ""
    spilled = (
        f", spills {record.spill_store_bytes} B out, {record.spill_load_bytes} B in" if record.spills else ""
    )
    return f"{record.registers} ({record.resident_warps}){spilled}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write both files; 1 where a kernel spills, is warned of or overlaps nothing, or nothing compiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.resources", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=RESULTS, help="default: %(default)s")
    output: Path = parser.parse_args(argv).output_dir
    try:
        library = build({ARCHITECTURES_VARIABLE: "all", **os.environ})
    except KernelBuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    records = demangled(parse(library.log()))
    result = report(records, library)
    output.mkdir(parents=True, exist_ok=True)
    (output / "resources.json").write_text(as_json(result), encoding="utf-8")
    (output / "resources.md").write_text(table(records, result), encoding="utf-8")
    found = problems(library.log())
    if "90a" in library.architectures:
        found += sass.problems(sorted(library.objects.glob("*.o")))
    for each in found:
        print(each, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
