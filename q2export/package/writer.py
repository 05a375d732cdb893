"""Writing an engine package: all of it or nothing."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from q2export.contracts.progress import NOTICE, progress_bar
from q2export.errors import PackageError
from q2export.package.hashing import FileDigest, HashingWriter, fingerprint_file, hash_file
from q2export.package.manifest import (
    ALWAYS_HASHED_BYTES,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    TOOL_NAME,
    FileRecord,
    Manifest,
    Placement,
    WeightFile,
    check_relative_path,
    utc_now,
)
from q2export.package.output import NO_SPACE, list_files, staged_output
from q2export.package.placement import (
    PlacementMode,
    copy_file,
    describe_filesystem,
    link_file,
    require_free_space,
)
from q2export.package.staging import Staging
from q2export.strict.json import read_object

_log = logging.getLogger(__name__)


class PackageWriter:
    """Writes a package under a temporary name; it is renamed when complete.

    The final path never holds an incomplete package, see :func:`~q2export.package.output.staged_output`::

        with PackageWriter.open(Path("qwen2-0.5b.q2"), overwrite=False) as writer:
            writer.add_text("config.json", text)
            writer.place_weights(shard, "weights/model.safetensors")
            writer.write_manifest(Manifest(..., files=writer.files))

    It is the sink that the exporter writes weights and graphs through
    (:class:`q2export.exporter.weights.sink.WeightSink`).

    Attributes:
        output: absolute final path.
        folder: absolute temporary folder; other programs may write files here, see :meth:`add_written`.
        created: when the package was begun, for ``Manifest.created``.
    """

    def __init__(self, staging: Staging, placement: PlacementMode) -> None:
        self.output = staging.output
        self.folder = staging.folder
        self.created = utc_now()
        self._placement = placement
        self._files: dict[str, FileRecord] = {}
        self._weights: list[WeightFile] = []
        self._described: Mapping[str, FileRecord] | None = None

    @classmethod
    @contextmanager
    def open(
        cls, output: Path, overwrite: bool = False, placement: PlacementMode = "auto"
    ) -> Iterator[PackageWriter]:
        """Begin a package; it is put in place when the block ends normally.

        Args:
            output: where the package goes; missing parents are made.
            overwrite: whether an existing package there may be replaced.
            placement: how files of the checkpoint get into the package.

        Raises:
            PackageError: the output is in the way, cannot be written, or :meth:`write_manifest` has not
                described every file.
        """
        with staged_output(output, overwrite, written_files) as staging:
            writer = cls(staging, placement)
            yield writer
            writer._check_complete()

    @property
    def files(self) -> Mapping[str, FileRecord]:
        """Records of the files written so far, for ``Manifest.files``."""
        return MappingProxyType(dict(self._files))

    @property
    def weights(self) -> tuple[WeightFile, ...]:
        """The files of weights written so far, for ``WeightsInfo.files``."""
        return tuple(self._weights)

    def _check_complete(self) -> None:
        if self._described is None:
            raise PackageError(f"{self.output}: {MANIFEST_NAME} was not written")
        present = list_files(self.folder) - {MANIFEST_NAME}
        differing = present.symmetric_difference(self._described) | present.symmetric_difference(self._files)
        if differing or self._described != self._files:
            names = ", ".join(sorted(differing)) or "changed after it was written"
            raise PackageError(f"{self.output}: {MANIFEST_NAME} does not describe the files written: {names}")

    def _target(self, name: str) -> Path:
        check_relative_path(name)
        if name in self._files:
            raise PackageError(f"{self.output}: {name} is written twice")
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @contextmanager
    def open_hashed(self, name: str) -> Iterator[HashingWriter]:
        """Open a new file for writing; it is hashed on the way and recorded when the block ends normally."""
        with HashingWriter(self._target(name)) as file:
            yield file
        self._files[name] = FileRecord.of(file.result())

    def add_bytes(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with self.open_hashed(name) as file:
            file.write(data)

    def add_text(self, name: str, text: str) -> None:
        """Write a small UTF-8 file; line ends stay as they are."""
        self.add_bytes(name, text.encode("utf-8"))

    def add_file(self, name: str, source: Path) -> None:
        """Copy a file, byte for byte.

        Raises:
            PackageError: ``source`` cannot be read.
        """
        target = self._target(name)
        with _reading(source):
            self._files[name] = FileRecord.of(copy_file(_real_file(source), target))

    def add_written(self, name: str) -> None:
        """Record a file that another program wrote to ``folder / name``: read it once, bring it to stable
        storage."""
        check_relative_path(name)
        path = self.folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._files[name] = FileRecord.of(
            FileDigest(path.stat().st_size, hash_file(path), fingerprint_file(path))
        )

    @contextmanager
    def open_weights(self, name: str, sources: tuple[str, ...], nbytes: int) -> Iterator[HashingWriter]:
        """Open a new file of weights, as :meth:`open_hashed`.

        Args:
            name: its path in the package.
            sources: names of the checkpoint's files it is made of.
            nbytes: about what it will take.

        Raises:
            PackageError: space is short.
        """
        require_free_space(self.folder, nbytes, "converted weights")
        with self.open_hashed(name) as file:
            yield file
        self._weights.append(WeightFile(name, "converted", sources, self._files[name].bytes))

    def add_weights(self, name: str, sources: tuple[str, ...], sha256: str) -> None:
        """Record weights that were quantized to ``folder / name``; all bytes are on stable storage already.

        Args:
            name: the file's path in the package.
            sources: names of the checkpoint's files they were made of.
            sha256: of the whole file.
        """
        check_relative_path(name)
        path = self.folder / name
        size = path.stat().st_size
        self._files[name] = FileRecord.of(FileDigest(size, sha256, fingerprint_file(path)))
        self._weights.append(WeightFile(name, "quantized", sources, size))

    def expect_weights(self, shards: Sequence[Path]) -> None:
        """Say what bringing in these shards will take, and refuse what cannot be, before any of them is.

        Raises:
            PackageError: space is short.
        """
        copied = [shard for shard in shards if not self._can_link(shard)]
        if not copied or self._placement == "link":
            return
        size = sum(shard.stat().st_size for shard in copied)
        require_free_space(self.folder, size, "copies of the weights")
        choice = (
            "every ONNX tool opens a copy; weights 'link' shares them with the checkpoint, but onnx.load, "
            "onnx.checker and polygraphy refuse hard links"
            if self._placement == "copy"
            else "they cannot be linked from there"
        )
        _log.log(NOTICE, "copying %.2f GB of weights: %s", size / 1e9, choice)

    def _can_link(self, shard: Path) -> bool:
        """Whether a shard comes in without its bytes being copied; tries it."""
        trial = self.folder / f".{secrets.token_hex(4)}"
        with _reading(shard):
            linked = link_file(_real_file(shard), trial, self._placement) is not None
        trial.unlink(missing_ok=True)
        return linked

    def place_weights(self, shard: Path, name: str, sha256: str | None = None) -> None:
        """Bring a checkpoint shard into the package, as the writer's ``placement`` says.

        See :mod:`q2export.package.placement` for what the ways mean.

        Args:
            shard: the shard; symbolic links are followed to the real file.
            name: its path in the package.
            sha256: of the whole shard, if it was read anyway. Without it a linked shard above 64 MiB, which
                is not read here, is recorded with its fingerprint alone.

        Raises:
            PackageError: the shard cannot be read, or linking is impossible where nothing else is allowed.
        """
        target = self._target(name)
        with _reading(shard):
            real = _real_file(shard)
            placement: Placement | None = link_file(real, target, self._placement)
            if placement is not None:
                self._files[name] = _linked_record(target, sha256)
            elif self._placement == "link":
                raise _cannot_link(real, self.output.parent)
            else:
                placement = "copy"
                with progress_bar(f"copying {shard.name}", real.stat().st_size) as advance:
                    self._files[name] = FileRecord.of(copy_file(real, target, advance))
        self._weights.append(WeightFile(name, placement, (shard.name,), self._files[name].bytes))

    def write_manifest(self, manifest: Manifest) -> None:
        """Write ``manifest.json``; called again (say, after the parity check), it replaces the earlier one.

        Raises:
            PackageError: ``manifest.files`` is not what was written.
        """
        if dict(manifest.files) != self._files:
            differing = sorted(dict(manifest.files).items() ^ self._files.items())
            raise PackageError(
                f"{self.output}: the manifest differs from the files written: {differing[0][0]}"
            )
        path = self.folder / MANIFEST_NAME
        path.unlink(missing_ok=True)
        with HashingWriter(path) as file:
            file.write(manifest.to_json().encode())
        self._described = dict(manifest.files)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Report a failure to read ``source`` as an error of the user's; a full disk is reported at the end."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise PackageError(f"{source}: cannot be put into the package: {error.strerror}") from error


def _real_file(path: Path) -> Path:
    """The regular file that ``path`` leads to."""
    try:
        real = path.resolve(strict=True)
    except RuntimeError as error:  # a loop of symbolic links, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    if not real.is_file():
        raise PackageError(f"{path}: expected a regular file")
    return real


def _cannot_link(source: Path, parent: Path) -> PackageError:
    ours, theirs = describe_filesystem(parent), describe_filesystem(source)
    return PackageError(
        f"{source} ({theirs}) cannot be linked into {parent} ({ours}); put the package on the file system of "
        "the checkpoint, or let the weights be copied"
    )


def _linked_record(path: Path, sha256: str | None) -> FileRecord:
    size, fingerprint = path.stat().st_size, fingerprint_file(path)
    if sha256 is None and size <= ALWAYS_HASHED_BYTES:
        sha256 = hash_file(path)
    reason = None if sha256 is not None else "linked to the checkpoint without reading all of it"
    return FileRecord(size, sha256, fingerprint, reason)


def written_files(output: Path) -> set[str]:
    """Files of a package, which alone may be replaced.

    Raises:
        PackageError: ``output`` is no package.
    """
    try:
        data = read_object(output / MANIFEST_NAME, MAX_MANIFEST_BYTES, PackageError)
    except PackageError as error:
        raise PackageError(f"it is not a {TOOL_NAME} package ({error})") from None
    tool, files = data.get("tool"), data.get("files")
    if not isinstance(tool, dict) or tool.get("name") != TOOL_NAME or not isinstance(files, dict):
        raise PackageError(f"its {MANIFEST_NAME} was not written by {TOOL_NAME}")
    return {MANIFEST_NAME, *files}
