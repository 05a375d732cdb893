"""The command that makes a package again, from what its manifest says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from q2export.contracts.commands import command_line

_SHOWN_CHARACTERS = 200


def rebuild_command(manifest: Mapping[str, object], folder: Path) -> str:
    """The ``q2export build``, or ``export``, that makes a package again in its place.

    A manifest names a local checkpoint and a profile file, and not where they lie: what is not found below
    the current folder or beside the package is shown as ``path/to/NAME``.

    Args:
        manifest: plain data; of another schema version, too: what is not found becomes ``MODEL``.
        folder: of the package.
    """
    model = _text(manifest, "model", "id")
    words: list[str | Path] = ["--model", _model(model, folder) if model else "MODEL"]
    if revision := _text(manifest, "model", "revision"):
        words += ["--revision", revision]
    place: tuple[str | Path, ...] = ("--output", folder, "--overwrite")
    if manifest.get("profile", {}) is None:
        return command_line("export", *words, *_export_options(manifest), *place)
    profile = _text(manifest, "profile", "name")
    words += ["--profile", _profile(profile) if profile else "PROFILE"]
    overrides = manifest.get("profile_overrides")
    for key, value in (overrides if isinstance(overrides, Mapping) else {}).items():
        setting = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        words += ["--set", setting] if setting.isprintable() else []
    return command_line("build", *words, *place)


def _text(manifest: Mapping[str, object], section: str, key: str) -> str:
    """A printable string of the manifest, short enough for a message; empty if there is none."""
    data = manifest.get(section)
    value = data.get(key) if isinstance(data, Mapping) else None
    fits = isinstance(value, str) and value.isprintable() and len(value) <= _SHOWN_CHARACTERS
    return str(value) if fits else ""


def _model(name: str, folder: Path) -> str | Path:
    """A hub id as it is; a local checkpoint where it is found."""
    if "/" in name:
        return name
    for place in (Path.cwd(), folder.parent, folder.parent.parent):
        if (place / name / "config.json").is_file():
            return place / name
    return f"path/to/{name}"


def _profile(name: str) -> str:
    from q2export.contracts.profile_loading import profile_names

    return name if name in profile_names() else f"path/to/{name}.yaml"


def _export_options(manifest: Mapping[str, object]) -> Iterator[str]:
    target, dtype = manifest.get("target"), _text(manifest, "engine", "dtype")
    if isinstance(target, str) and target.isprintable():
        yield from ("--target", target)
    if dtype:
        yield from ("--dtype", dtype)
    weights, quantization = manifest.get("weights"), manifest.get("quantization")
    files = weights.get("files") if isinstance(weights, Mapping) else None
    if isinstance(quantization, Mapping) and isinstance(files, list):
        placements = {file.get("placement") for file in files if isinstance(file, Mapping)}
        if "quantized" in placements and quantization.get("bits") in (4, 8):
            yield from ("--quantization", f"int{quantization['bits']}")
