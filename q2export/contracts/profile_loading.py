"""Reading profiles.

A profile is a YAML file (packaged in ``q2export.profiles``, or the user's own) and a few values from the
command line. Precedence: command line > profile file > default of the dataclass.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from q2export.contracts.profile import COMMAND_LINE, Origin, Profile
from q2export.errors import ProfileError
from q2export.strict.codec import Source, decode, fields_of, join, to_plain
from q2export.strict.suggest import nearest
from q2export.strict.yaml import parse_yaml, read_yaml


def profile_names() -> list[str]:
    """Names of the packaged profiles, sorted."""
    entries = importlib.resources.files("q2export.profiles").iterdir()
    return sorted(entry.name[: -len(".yaml")] for entry in entries if entry.name.endswith(".yaml"))


def parse_overrides(settings: Iterable[str]) -> dict[str, object]:
    """Turn ``["capacity.max=8192", "threads=2"]`` (``--set``) into overrides for :func:`load_profile`.

    Values are read as in a profile file, except that what belongs to a string needs no quotes
    (``compute_capability=8.0``).

    Raises:
        ProfileError: no ``=``, a key given twice, or a value that is not valid YAML.
    """
    leaves, overrides = _leaves(Profile), {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ProfileError(f"--set {setting}: expected KEY=VALUE, for example capacity.max=8192")
        if key in overrides:
            raise ProfileError(f"--set {key} is given twice")
        is_text = leaves.get(key) in (str, str | None) and text != "null"
        overrides[key] = text if is_text else parse_yaml(text, f"--set {setting}", ProfileError)
    return overrides


def load_profile(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Profile:
    """Load a packaged profile by name, or a profile file by path, and apply overrides by dotted key.

    A maximum given on the command line lowers what it leaves no room for: ``capacity.max=8192`` also lowers a
    ``prompt.max`` of 32768 that comes from the file. ``Profile.origin`` records it as ``"lowered to fit"``.

    Raises:
        ProfileError: no such profile, unknown key (naming the nearest valid one), wrong type, or values that
            contradict each other; the message names the file, or the command line, and the key.
    """
    label, data = _read(name_or_path)
    source, command_line = Source(label, ProfileError), Source("--set", ProfileError)
    values, origin = _defaults(Profile)
    for key, value in _flatten(Profile, data, source).items():
        values[key], origin[key] = value, "profile"
    for key, value in _checked_overrides(overrides or {}, command_line).items():
        values[key], origin[key] = value, COMMAND_LINE
    _lower_to_fit(values, origin)
    where = f"{label} with {', '.join(f'--set {key}' for key in overrides)}" if overrides else label
    profile = Profile.from_dict(_unflatten(values), where)
    return dataclasses.replace(profile, origin=dict(sorted(origin.items())))


def _read(name_or_path: str | Path) -> tuple[str, object]:
    """The label for messages and the raw data of a profile."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in text and not text.endswith((".yaml", ".yml")):
        names = profile_names()
        if text not in names:
            raise ProfileError(
                f"no packaged profile is called {text!r}{nearest(text, names)} ; or give a file, NAME.yaml"
            )
        resource = importlib.resources.files("q2export.profiles") / f"{text}.yaml"
        label = f"profile {text!r}"
        return label, parse_yaml(resource.read_text(encoding="utf-8"), label, ProfileError)
    path = Path(name_or_path)
    return str(path), read_yaml(path, ProfileError)


def _leaves(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every scalar below a dataclass."""
    found: dict[str, Any] = {}
    for name, hint in fields_of(kind).items():
        key = join(prefix, name)
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found.update(_leaves(hint, key) if is_section else {key: hint})
    return found


def _defaults(kind: type) -> tuple[dict[str, object], dict[str, Origin]]:
    """Value of every scalar that has a default, by dotted key; a section has it for all it holds or none."""
    values: dict[str, object] = {}
    for item in dataclasses.fields(kind):
        if not item.metadata.get("plain", True):
            continue
        if item.default is not dataclasses.MISSING:
            values[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            plain = to_plain(item.default_factory())
            values |= {join(item.name, name): value for name, value in plain.items()}
    return values, dict.fromkeys(values, "default")


def _flatten(kind: type, data: object, source: Source, prefix: str = "") -> dict[str, object]:
    """Dotted key -> checked value of what ``data`` gives; what it does not give is left out."""
    if not isinstance(data, Mapping):
        raise source.refuse(prefix, "a mapping", data)
    hints, flat = fields_of(kind), {}
    for name, value in data.items():
        if name not in hints:
            inside = f" in {prefix}" if prefix else ""
            raise ProfileError(f"{source.label}: unknown key {name!r}{inside}{nearest(str(name), hints)}")
        hint, key = hints[name], join(prefix, name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            flat.update(_flatten(hint, value, source, key))
        else:
            flat[key] = decode(hint, value, source, key)
    return flat


def _checked_overrides(overrides: Mapping[str, object], source: Source) -> dict[str, object]:
    leaves = _leaves(Profile)
    leaves.pop("name")  # a name that finds another profile, or none, helps nobody
    for key in overrides:
        if key not in leaves:
            inner = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
            hint = f"; give one of {', '.join(inner)}" if inner else nearest(key, leaves)
            raise ProfileError(f"--set: unknown key {key!r}{hint}")
    return {key: decode(leaves[key], value, source, key) for key, value in overrides.items()}


_BOUNDED_BY = {
    "batch.opt": "batch.max",
    "batch.min": "batch.opt",
    "capacity.opt": "capacity.max",
    "capacity.min": "capacity.opt",
    "prompt.max": "capacity.max",
    "prompt.opt": "prompt.max",
    "prompt.min": "prompt.opt",
    "prefill_chunk": "prompt.max",
}


def _lower_to_fit(values: dict[str, object], origin: dict[str, Origin]) -> None:
    """Lower values that a bound from the command line, or one lowered for it, leaves no room for."""
    for key, bound in _BOUNDED_BY.items():
        value, limit = values.get(key), values.get(bound)
        if origin.get(key) == COMMAND_LINE or origin.get(bound) not in (COMMAND_LINE, "lowered to fit"):
            continue
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            values[key], origin[key] = limit, "lowered to fit"


def _unflatten(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
