"""From what the user calls a model to a folder: a local path, or a Hugging Face hub id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from q2export.errors import CheckpointError, MissingDependencyError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "merges.txt")


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint folder and how it is called.

    Attributes:
        folder: where the files are.
        id: the hub id, or the name of a local folder.
        revision: the revision asked for, for a hub id.
    """

    folder: Path
    id: str
    revision: str | None


def resolve_model(model: str | Path, revision: str | None = None) -> ModelSource:
    """Find the folder of ``model``, downloading it from the hub if it is an id and not cached.

    A name that exists as a folder is that folder. The hub client's own settings hold (cache folder, token,
    offline).

    Raises:
        CheckpointError: neither a folder nor a hub id, or the hub could not give it.
        MissingDependencyError: the hub client is not installed.
    """
    path = Path(model).expanduser()
    if os.path.isdir(path):  # False, too, for what cannot be a path
        if revision is not None:
            raise CheckpointError(f"{path}: a local folder has no revisions; leave out {revision!r}")
        return ModelSource(path, path.resolve().name, None)
    name = str(model)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(name) or os.path.exists(path):
        raise CheckpointError(
            f"{model}: expected a checkpoint folder or a hub id such as Qwen/Qwen2-0.5B-Instruct"
        )
    return ModelSource(_download(name, revision), name, revision)


def _download(name: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError(
            f"{name}: downloading needs huggingface_hub; install it with: pip install huggingface-hub"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the client raises its own, the HTTP library's and the operating system's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name}: not a local folder, and the Hugging Face hub could not give it: {reason}"
        ) from error
