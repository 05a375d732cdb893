"""Profiles on the command line: their names, ``--set KEY=VALUE``, and how their values are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem


def overrides_of(settings: Sequence[str], short: Mapping[str, tuple[str, str | None]]) -> dict[str, object]:
    """Turn ``--set capacity.max=8192 --set threads=2`` into overrides for a profile.

    Values are read as in a profile file, except that what belongs to a string needs no quotes
    (``compute_capability=8.0``).

    Args:
        settings: the values of ``--set``.
        short: option and its value, or None, by the key it stands for.

    Raises:
        ProfileError: a value that is not valid YAML.
        click.UsageError: no ``=``, or a key given twice.
    """
    from q2export.contracts.profile_loading import profile_keys
    from q2export.errors import ProfileError
    from q2export.strict.yaml import parse_yaml

    types, overrides = profile_keys(), {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set {setting}: expected KEY=VALUE, such as capacity.max=8192")
        if key in overrides:
            raise click.UsageError(f"--set {key} is given twice")
        is_text = types.get(key) in (str, str | None) and text != "null"
        overrides[key] = text if is_text else parse_yaml(text, f"--set {setting}", ProfileError)
    for key, (option, value) in short.items():
        if value is None:
            continue
        if key in overrides:
            raise click.UsageError(f"{option} and --set {key} are the same; give one of them")
        overrides[key] = value
    return overrides


def complete_profile(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of the packaged profiles, then files."""
    from q2export.contracts.profile_loading import profile_names

    names = [CompletionItem(name) for name in profile_names() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def value_rows(
    values: Mapping[str, Any], origin: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, str, str]]:
    """Dotted key, value and origin of every value of a profile (plain data)."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from value_rows(value, origin, f"{key}.")
        else:
            yield key, value if isinstance(value, str) else json.dumps(value), origin.get(key, "")
