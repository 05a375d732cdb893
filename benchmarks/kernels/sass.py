"""What the assembler has made of a kernel: reads the machine code that ``cuobjdump -sass`` prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

OVERLAPPED = 64
"""Exponentials of a thread in a step of Hopper's prefill: 128 keys of two rows, over four lanes."""

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.MULTILINE)
_FIRST_WAIT = "WARPGROUP.DEPBAR.LE gsb0, 0x1"
_NEXT_WAIT = "WARPGROUP.DEPBAR.LE gsb0"


def find_disassembler() -> Path | None:
    """``cuobjdump`` of the PATH or of the usual folder; compilers come without it."""
    usual = Path("/usr/local/cuda/bin/cuobjdump")
    found = shutil.which("cuobjdump")
    return Path(found) if found else usual if usual.is_file() else None


def disassembled(path: Path, disassembler: Path) -> dict[str, str]:
    """Machine code of every kernel of an object file or library, by the name it has there.

    Raises:
        RuntimeError: the disassembler fails; its words.
    """
    done = subprocess.run([disassembler, "-sass", path], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{disassembler} {path}: {done.stderr or done.stdout}")
    return functions(done.stdout)


def functions(text: str) -> dict[str, str]:
    """The same, of what was printed."""
    parts = _FUNCTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def exponentials_beside_product(code: str) -> int:
    """How many exponentials follow the wait that leaves one product running, before the next wait.

    They are what runs beside that product (Shah et al. 2024, section 3.2); 0 without such a wait.
    """
    _, found, behind = code.partition(_FIRST_WAIT)
    return behind.partition(_NEXT_WAIT)[0].count("MUFU.EX2") if found else 0


def problems(objects: Sequence[Path]) -> list[str]:
    """Kernels of Hopper's prefill whose exponentials do not run beside a product.

    Args:
        objects: object files; those of other sources are left alone.
    """
    disassembler = find_disassembler()
    files = [path for path in objects if "prefill_hopper" in path.name]
    if disassembler is None or not files:
        print("machine code not looked at: needs cuobjdump, of the CUDA toolkit")
        return []
    found = []
    for name, code in (item for path in files for item in disassembled(path, disassembler).items()):
        count = exponentials_beside_product(code)
        if "hopper_prefill_kernel" in name and count < OVERLAPPED:
            found.append(f"{name}: {count} exponentials run beside a product, expected {OVERLAPPED}")
    return found
