"""Packages for a machine without network, as pieces that fit through a narrow door.

``split`` downloads the wheels of ``requirements.txt`` for another Python, packs them into one stream, cuts
it; ``place N`` puts piece N where the tree's next journey takes it along; ``receive``, on the other machine,
keeps each piece and, with the last one, checks, unpacks and installs them. ``split`` alone needs the network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.gpu.plan import CampaignError
from q2export.errors import Q2ExportError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
PLACE = Path(__file__).resolve().parents[2] / "build" / "wheels"
"""In the tree, and ignored by git."""
MANIFEST = "manifest.json"
PYTHON = "3.12"
PIECE_BYTES = 50_000_000
PLATFORMS = ("2_34", "2_31", "2_28", "2_27", "2_17")
"""pip takes a platform at its word: each glibc that a wheel may name, down to that of manylinux2014."""
_BLOCK = 1 << 20


def download(requirements: Path, python: str, folder: Path) -> list[Path]:
    """Fetch the wheels, for x86-64 Linux.

    Raises:
        CampaignError: pip cannot; its words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in PLATFORMS]
    options = ["--no-deps", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *platforms]
    command += ["--platform=manylinux2014_x86_64", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CampaignError(f"pip download failed:\n{done.stdout}{done.stderr}")
    return sorted(folder.glob("*.whl"))


def split(wheels: Sequence[Path], folder: Path, piece_bytes: int = PIECE_BYTES) -> dict[str, Any]:
    """Cut wheels into pieces.

    Args:
        wheels: the files.
        folder: gets ``piece-01`` and so on, and the manifest.
        piece_bytes: most that a piece may have.

    Returns:
        the manifest: ``wheels`` and ``pieces``, name -> bytes and sha256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("piece-*"):
        old.unlink()
    ordered = sorted(wheels, key=lambda path: (path.stat().st_size, path.name))
    stream = folder / "stream.tar"
    with tarfile.open(stream, "w") as archive:
        for path in ordered:
            archive.add(path, arcname=path.name)
    names: list[str] = []
    with stream.open("rb") as source:
        while not _at_end(source):
            names.append(f"piece-{len(names) + 1:02d}")
            with (folder / names[-1]).open("wb") as piece:
                _copy(source, piece, piece_bytes)
    stream.unlink()
    manifest = {
        "wheels": {path.name: described(path) for path in ordered},
        "pieces": {name: described(folder / name) for name in names},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def place(folder: Path, number: int, target: Path = PLACE) -> Path:
    """Put one piece and the manifest, and nothing else, into ``target``.

    Raises:
        CampaignError: there is no such piece.
    """
    manifest = read_manifest(folder)
    name = f"piece-{number:02d}"
    if name not in manifest["pieces"]:
        raise CampaignError(f"{folder} has pieces 1 to {len(manifest['pieces'])}, not {number}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for each in (MANIFEST, name):
        shutil.copy(folder / each, target)
    return target / name


def receive(source: Path, store: Path, site: Path) -> str:
    """Keep the pieces of ``source``; install, once all are there.

    Args:
        source: folder in which a piece and the manifest have come.
        store: folder outside the tree, which keeps them.
        site: folder that the packages are installed into, for PYTHONPATH.

    Returns:
        what is still missing, or what was installed.

    Raises:
        CampaignError: a piece is damaged, or pip refuses a wheel.
    """
    manifest = read_manifest(source)
    store.mkdir(parents=True, exist_ok=True)
    if (store / MANIFEST).is_file() and read_manifest(store) != manifest:
        for old in store.glob("piece-*"):  # of other wheels
            old.unlink()
    shutil.copy(source / MANIFEST, store)
    for path in sorted(source.glob("piece-*")):
        _check(path, manifest["pieces"].get(path.name))
        shutil.move(path, store / path.name)
    missing = [name for name in manifest["pieces"] if not (store / name).is_file()]
    if missing:
        count = len(manifest["pieces"])
        return f"{count - len(missing)} of {count} pieces are here; next {missing[0]}"
    wheels = join(store, store / "wheels")
    install(wheels, site)
    return f"installed into {site}: {', '.join(path.name for path in wheels)}"


def join(folder: Path, target: Path) -> list[Path]:
    """Make the wheels of the pieces again, each checked.

    Raises:
        CampaignError: a piece is absent or damaged, or a wheel is not what it was.
    """
    manifest = read_manifest(folder)
    for name, wanted in manifest["pieces"].items():
        _check(folder / name, wanted)
    target.mkdir(parents=True, exist_ok=True)
    reader = io.BufferedReader(_Pieces([folder / name for name in manifest["pieces"]]), _BLOCK)
    with tarfile.open(fileobj=reader, mode="r|") as archive:
        archive.extractall(target, filter="data")
    for name, wanted in manifest["wheels"].items():
        _check(target / name, wanted)
    return [target / name for name in manifest["wheels"]]


def install(wheels: Sequence[Path], site: Path) -> None:
    """Unpack wheels into a folder, without their needs and without the network.

    Raises:
        CampaignError: pip refuses; its words.
    """
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CampaignError(f"pip install failed:\n{done.stdout}{done.stderr}")


def described(path: Path) -> dict[str, Any]:
    """Bytes and sha256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        CampaignError: it has none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CampaignError(f"{path} is absent: run python -m benchmarks.gpu.wheels split, then place")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _check(path: Path, wanted: dict[str, Any] | None) -> None:
    if wanted is None:
        raise CampaignError(f"{path.name} is not in the manifest beside it")
    if not path.is_file():
        raise CampaignError(f"{path} is absent")
    found = described(path)
    if found != wanted:
        raise CampaignError(f"{path} is damaged: expected {wanted}, found {found}; send it again")


def _at_end(file: BinaryIO) -> bool:
    here = file.tell()
    byte = file.read(1)
    file.seek(here)
    return not byte


def _copy(source: BinaryIO, target: BinaryIO, most: int) -> None:
    left = most
    while left and (block := source.read(min(_BLOCK, left))):
        target.write(block)
        left -= len(block)


class _Pieces(io.RawIOBase):
    """Files, one behind the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._blocks = self._read(paths)
        self._left = b""

    @staticmethod
    def _read(paths: Sequence[Path]) -> Iterator[bytes]:
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    yield block

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._left or next(self._blocks, b"")
        count = min(len(block), len(buffer))
        buffer[:count] = block[:count]
        self._left = block[count:]
        return count


def main(argv: Sequence[str] | None = None) -> int:
    """Do one of the three."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.action == "split":
            wheels = download(arguments.requirements, arguments.python, arguments.store / "wheels")
            manifest = split(wheels, arguments.store, arguments.piece_bytes)
            for name, each in manifest["wheels"].items():
                print(f"{each['bytes']:>12,}  {name}")
            print(f"{len(manifest['pieces'])} pieces in {arguments.store}")
        elif arguments.action == "place":
            print(place(arguments.store, arguments.number))
        else:
            print(receive(PLACE, arguments.store, arguments.site))
    except Q2ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "q2export" / "wheels"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels", description=__doc__)
    parser.add_argument("--store", type=Path, default=cache, help="outside the tree; default: %(default)s")
    actions = parser.add_subparsers(dest="action", required=True)
    cut = actions.add_parser("split", help="download, and cut into pieces")
    cut.add_argument("--requirements", type=Path, default=REQUIREMENTS)
    cut.add_argument("--python", default=PYTHON, help="of the other machine; default: %(default)s")
    cut.add_argument("--piece-bytes", type=int, default=PIECE_BYTES, help="default: %(default)s")
    put = actions.add_parser("place", help="put a piece into the tree")
    put.add_argument("number", type=int)
    take = actions.add_parser("receive", help="keep the piece of the tree; install with the last")
    take.add_argument("--site", type=Path, default=Path("/tmp/site"), help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
