"""Reading profiles.

A profile is a YAML file (packaged in ``q2export.profiles``, or the user's own) and a few overriding values,
of the command line or the caller. Precedence: override > profile file > default of the dataclass.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from q2export.contracts.profile import Origin, Profile
from q2export.errors import ProfileError
from q2export.strict.codec import Source, fields_of, join, to_plain
from q2export.strict.json import shown
from q2export.strict.suggest import nearest
from q2export.strict.yaml import parse_yaml, read_yaml


def profile_names() -> list[str]:
    """Names of the packaged profiles, sorted."""
    entries = importlib.resources.files("q2export.profiles").iterdir()
    return sorted(entry.name[: -len(".yaml")] for entry in entries if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Profile:
    """Load a packaged profile by name, or a profile file by path, and apply overrides by dotted key.

    An overriding maximum lowers what it leaves no room for: ``capacity.max`` of 8192 also lowers a
    ``prompt.max`` of 32768 that comes from the file. ``Profile.origin`` records it as ``"lowered to fit"``.
    The builder ``onnxruntime`` makes the target ``tensorrt`` of a file ``onnxruntime-cuda``.

    Raises:
        ProfileError: no such profile, unknown key (naming the nearest valid one), wrong type, or values that
            contradict each other; the message names the file, the overrides and the key.
    """
    label, data = _read(name_or_path)
    values = _defaults(Profile)
    origin: dict[str, Origin] = dict.fromkeys(values, "default")
    given = _flatten(Profile, data, Source(label, ProfileError))
    values |= given
    origin |= dict.fromkeys(given, "profile")
    if overrides:
        _check_keys(overrides)
        values |= overrides
        origin |= dict.fromkeys(overrides, "override")
        label = f"{label} with {', '.join(f'{key}={_shown(value)}' for key, value in overrides.items())}"
    return _decoded(values, origin, label)


def fit_to_model(profile: Profile, context_length: int) -> Profile:
    """Lower the largest capacity to the tokens a sequence of the model may hold, and what leaves no room.

    Raises:
        ProfileError: a larger capacity, or a prompt that does not fit, was asked for by an override.
    """
    if profile.capacity.max <= context_length:
        return profile
    if profile.origin.get("capacity.max") == "override":
        raise ProfileError(
            f"capacity.max is {profile.capacity.max}, but the model holds sequences of {context_length} "
            "tokens (config.json); leave it out, or lower it"
        )
    values, origin = profile.leaves(), dict(profile.origin)
    values["capacity.max"], origin["capacity.max"] = context_length, "lowered to fit"
    return _decoded(values, origin, f"profile {profile.name!r} for a model of {context_length} tokens")


def profile_keys() -> dict[str, Any]:
    """Type of every value that may be overridden, by dotted key."""
    keys = _leaves(Profile)
    del keys["name"]  # a name that finds another profile, or none, helps nobody
    return keys


def _decoded(values: dict[str, object], origin: dict[str, Origin], label: str) -> Profile:
    """The profile of these values, by dotted key: the one place where they are checked."""
    _lower_to_fit(values, origin)
    if (values["target"], values["builder"]) == ("tensorrt", "onnxruntime"):
        values["target"], origin["target"] = "onnxruntime-cuda", "follows builder"
    profile = Profile.from_dict(_unflatten(values), label)
    return dataclasses.replace(profile, origin=dict(sorted(origin.items())))


def _read(name_or_path: str | Path) -> tuple[str, object]:
    """The label for messages and the raw data of a profile."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in text and not text.endswith((".yaml", ".yml")):
        names = profile_names()
        if text not in names:
            raise ProfileError(
                f"no packaged profile is called {text!r}{nearest(text, names)} (a file of your own is "
                f"given by its path, such as ./{text or 'NAME'}.yaml)"
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


def _defaults(kind: type) -> dict[str, object]:
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
    return values


def _flatten(kind: type, data: object, source: Source, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of what ``data`` gives; the values are not checked yet."""
    if not isinstance(data, Mapping):
        raise source.refuse(prefix, "a mapping", data)
    hints = fields_of(kind)
    flat: dict[str, object] = {}
    for name, value in data.items():
        if name not in hints:
            inside = f" in {prefix}" if prefix else ""
            raise ProfileError(
                f"{source.label}: unknown key {shown(name)}{inside}{nearest(str(name), hints)}"
            )
        hint, key = hints[name], join(prefix, name)
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        flat |= _flatten(hint, value, source, key) if is_section else {key: value}
    return flat


def _check_keys(overrides: Mapping[str, object]) -> None:
    keys = profile_keys()
    for key in overrides:
        if key not in keys:
            inner = [name for name in keys if name.startswith(f"{key}.")]
            hint = f"; give one of {', '.join(inner)}" if inner else nearest(key, keys)
            raise ProfileError(f"a profile has no key {key!r}{hint}")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


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
    """Lower values that an overriding bound, or one lowered itself, leaves no room for."""
    for key, bound in _BOUNDED_BY.items():
        value, limit = values.get(key), values.get(bound)
        if origin.get(key) == "override" or origin.get(bound) not in ("override", "lowered to fit"):
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
