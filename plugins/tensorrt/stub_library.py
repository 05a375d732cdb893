"""A shared library of one's own that only forwards to another, written without a compiler.

It carries a name (``DT_SONAME``) and one dependency (``DT_NEEDED``) and no symbol of its own. Once it is
loaded, ``dlopen(name)`` anywhere in the process returns it, and ``dlsym`` on that handle finds the symbols of
the dependency. Layout: System V ABI, edition 4.1, chapters 4 and 5. It has no code, so it needs no executable
mapping and loads from a folder mounted ``noexec`` too.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import tempfile

_MACHINES = {"x86_64": 62, "aarch64": 183}
"""``e_machine`` by :func:`platform.machine`."""

_EHDR, _PHDR, _SYMBOL = 64, 56, 24
_ET_DYN = 3
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_READ_WRITE = 6
_PAGE = 0x10000  # the largest page of either machine
_DT_NULL, _DT_NEEDED, _DT_HASH, _DT_STRTAB = 0, 1, 4, 5
_DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_SONAME = 6, 10, 11, 14


def forwarding_library(soname: str, needed: str, machine: int) -> bytes:
    """Return a little-endian ELF64 shared object named ``soname`` that depends on ``needed`` alone.

    Args:
        soname: the name ``dlopen`` is to find it by.
        needed: the library whose symbols it stands for.
        machine: ``e_machine`` of the process that loads it.
    """
    hash_table = struct.pack("<4I", 1, 1, 0, 0)  # one bucket, one chain, both the null symbol
    strings = b"\0" + needed.encode() + b"\0" + soname.encode() + b"\0"
    strings += b"\0" * (-len(strings) % 8)
    symbols_at = _EHDR + 3 * _PHDR
    hash_at = symbols_at + _SYMBOL
    strings_at = hash_at + len(hash_table)
    dynamic_at = strings_at + len(strings)
    entries = (
        (_DT_NEEDED, 1),
        (_DT_SONAME, 2 + len(needed)),
        (_DT_HASH, hash_at),
        (_DT_STRTAB, strings_at),
        (_DT_SYMTAB, symbols_at),
        (_DT_STRSZ, len(strings)),
        (_DT_SYMENT, _SYMBOL),
        (_DT_NULL, 0),
    )
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = dynamic_at + len(dynamic)
    # Writable, because the loader relocates the dynamic section in place.
    segments = (
        _segment(_PT_LOAD, 0, size, _PAGE),
        _segment(_PT_DYNAMIC, dynamic_at, len(dynamic), 8),
        _segment(_PT_GNU_STACK, 0, 0, 16),  # without it the loader would make every stack executable
    )
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little-endian, version 1
    layout = (_EHDR, 0, 0, _EHDR, _PHDR, len(segments), 0, 0, 0)  # program headers follow; no sections
    header = identity + struct.pack("<HHIQQQIHHHHHH", _ET_DYN, machine, 1, 0, *layout)
    return header + b"".join(segments) + bytes(_SYMBOL) + hash_table + strings + dynamic


def _segment(kind: int, offset: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, _READ_WRITE, offset, offset, offset, size, size, alignment)


def provide(soname: str, needed: str) -> None:
    """Make ``dlopen(soname)`` succeed in this process by forwarding it to ``needed``, which must be loaded.

    Does nothing where a library of that name is loaded already.

    Raises:
        OSError: ``needed`` is not loaded, or the processor is neither x86-64 nor aarch64.
    """
    if is_loaded(soname):
        return
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(f"no stub for {soname} on {platform.machine()}: expected {' or '.join(_MACHINES)}")
    if not is_loaded(needed):
        raise OSError(f"{needed} is not loaded")
    with tempfile.NamedTemporaryFile(prefix="q2export-", suffix=".so") as file:
        file.write(forwarding_library(soname, needed, machine))
        file.flush()
        ctypes.CDLL(file.name)  # stays loaded: ctypes never closes a library


def is_loaded(soname: str) -> bool:
    """Whether a library of this name is in the process."""
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return False
    return True
