"""An output folder: all of it or nothing, and nothing of the user's replaced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from q2export.errors import PackageError
from q2export.package.placement import describe_filesystem
from q2export.package.staging import Staging, exit_on_termination

WrittenFiles = Callable[[Path], Collection[str]]
"""Relative paths of the files that we wrote to a folder; raises PackageError where it is not ours."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
MAX_PATH_BYTES, MAX_NAME_BYTES = 3840, 220
"""Of an output. Linux takes 4,095 and 255; the rest is for the files in it and for the temporary name."""


def check_output(output: Path, overwrite: bool, written_files: WrittenFiles) -> None:
    """Refuse an output whose path is too long, or that exists, unless it may be replaced and is ours alone.

    Cheap: call it before any work is done.

    Raises:
        PackageError: naming what is in the way and what to do.
    """
    for what, text, most in (
        ("path", str(output.absolute()), MAX_PATH_BYTES),
        ("name", output.name, MAX_NAME_BYTES),
    ):
        if (size := len(os.fsencode(text))) > most:
            raise PackageError(
                f"the {what} of the output takes {size} bytes, expected at most {most}: choose a shorter one "
                f"than {text[:60]}..."
            )
    if not output.exists() or (overwrite and output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise PackageError(f"{output} exists already; choose another output, or overwrite it")
    keep = f"{output} is not replaced: "
    try:
        known = written_files(output)
    except PackageError as error:
        raise PackageError(f"{keep}{error}; remove it yourself") from None
    if surplus := sorted(list_files(output) - set(known)):
        more = f" and {len(surplus) - 1} more" if surplus[1:] else ""
        raise PackageError(f"{keep}it holds {surplus[0]!r}{more}, not made by q2export; move it away first")


def list_files(folder: Path) -> set[str]:
    """Relative paths of all files in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@contextmanager
def staged_output(output: Path, overwrite: bool, written_files: WrittenFiles) -> Iterator[Staging]:
    """A temporary folder that becomes ``output`` when the block ends normally, and disappears otherwise.

    An exception, Ctrl-C, SIGTERM or SIGHUP removes all traces; what a killed process leaves is removed by the
    next writer of the same output.

    Args:
        output: folder to make; missing parents are made, too.
        overwrite: whether what is there may be replaced, see :func:`check_output`.
        written_files: lists what may be replaced.

    Raises:
        PackageError: the output is in the way, or cannot be written.
    """
    staging = Staging(output)
    check_output(staging.output, overwrite, written_files)
    with exit_on_termination():
        try:
            staging.create()
            yield staging
            check_output(staging.output, overwrite, written_files)
            staging.commit(replace=overwrite)
        except OSError as error:
            if (problem := _explained(error, staging)) is None:
                raise
            raise problem from error
        finally:
            staging.discard()


def _explained(error: OSError, staging: Staging) -> PackageError | None:
    """An error of the system as one of the user's; None if it is not about the output."""
    output = staging.output
    where = f"{output.parent} ({describe_filesystem(output.parent)})"
    path = Path(error.filename) if isinstance(error.filename, str) else None
    inside = path is not None and path.is_relative_to(staging.folder)
    file = Path(output.name, path.relative_to(staging.folder)) if path is not None and inside else output.name
    if error.errno in NO_SPACE:
        return PackageError(
            f"no space left in {where} writing {file}; nothing was kept. Free some or write elsewhere"
        )
    if error.errno == errno.EFBIG:
        return PackageError(
            f"{file} is larger than a file may be in {where}, or for this process (ulimit -f); nothing was "
            "kept. Raise the limit or write elsewhere"
        )
    if isinstance(error, FileExistsError) and path == output:
        return PackageError(f"{output} was made by someone else meanwhile; nothing was changed")
    if inside or path in output.parents:
        return PackageError(f"cannot write to {where}: {file}: {error.strerror}; nothing was kept")
    return None
