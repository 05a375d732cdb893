"""Reading the rotary embedding of a ``config.json``, in the old spelling and that of transformers 5."""

from __future__ import annotations

from collections.abc import Mapping

from q2export.errors import ConfigError
from q2export.exporter.checkpoint.json_fields import Fields
from q2export.exporter.checkpoint.rope import (
    DEFAULT_BETA_FAST,
    DEFAULT_BETA_SLOW,
    DEFAULT_ROPE_THETA,
    ROPE_TYPES,
    RopeParameters,
)
from q2export.strict.suggest import nearest

_COMMON_KEYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_TYPE_KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "yarn": frozenset(
        {
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        }
    ),
}


def parse_rope(
    data: Mapping[str, object], max_position_embeddings: int
) -> tuple[RopeParameters, tuple[str, ...]]:
    """Read the rotary embedding of a ``config.json``, in either spelling.

    The old one is ``rope_scaling`` {``type`` or ``rope_type``, ...} with ``rope_theta`` beside it;
    transformers 5 writes ``rope_parameters`` {``rope_type``, ``rope_theta``, ...}. As there, a ``rope_theta``
    inside goes before one beside, and YaRN without ``original_max_position_embeddings`` takes
    ``max_position_embeddings``.

    Returns:
        the parameters, and warnings about fields that transformers ignores too.

    Raises:
        ConfigError: on a wrong type, an unknown rope type, two spellings that contradict each other, or
            rotation of only a part of each head.
    """
    group_name, group = _scaling_group(data)
    fields = Fields(group, f"{group_name}.")
    top = Fields(data)
    rope_type = _rope_type(fields)
    warnings = _unread_keys(fields, rope_type)
    if not fields.present("rope_theta") and not top.present("rope_theta"):
        warnings.append(f"rope_theta is absent: using transformers' default {DEFAULT_ROPE_THETA:g}")
    for holder in (top, fields):
        if holder.present("partial_rotary_factor") and holder.number("partial_rotary_factor") != 1:
            raise holder.wrong("partial_rotary_factor", "1 (rotating a part of each head is not implemented)")

    factor = 1.0 if rope_type == "default" else fields.number("factor", low=1)
    theta = fields.number("rope_theta", default=top.number("rope_theta", default=DEFAULT_ROPE_THETA))
    if rope_type != "yarn":
        return RopeParameters(rope_type, theta, factor), tuple(warnings)

    original = _original_length(top, fields, max_position_embeddings)
    implied = max_position_embeddings / original
    if implied not in (1.0, factor):
        warnings.append(
            f"{group_name}.factor is {factor:g} but max_position_embeddings / "
            f"original_max_position_embeddings is {implied:g}: using {factor:g}, as transformers does"
        )
    if fields.present("mscale") != fields.present("mscale_all_dim"):
        warnings.append(
            f"{group_name}: mscale and mscale_all_dim only count together; the one given is ignored"
        )
    rope = RopeParameters(
        rope_type=rope_type,
        rope_theta=theta,
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=fields.optional_number("beta_fast") or DEFAULT_BETA_FAST,
        beta_slow=fields.optional_number("beta_slow") or DEFAULT_BETA_SLOW,
        attention_factor=fields.optional_number("attention_factor"),
        mscale=fields.optional_number("mscale", low=0),
        mscale_all_dim=fields.optional_number("mscale_all_dim", low=0),
        truncate=fields.boolean("truncate", default=True),
    )
    return rope, tuple(warnings)


def _scaling_group(data: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    top = Fields(data)
    old, new = top.object("rope_scaling"), top.object("rope_parameters")
    if old and new and old != new:
        raise ConfigError("rope_scaling and rope_parameters are both given and differ; keep one of them")
    name, group = ("rope_scaling", old) if old else ("rope_parameters", new or {})
    nested = sorted(key for key, value in group.items() if isinstance(value, Mapping))
    if nested:
        raise ConfigError(
            f"{name}: one rotary embedding per layer type ({', '.join(nested)}) is not implemented"
        )
    return name, group


def _rope_type(fields: Fields) -> str:
    names = [name for name in ("rope_type", "type") if name in fields.data]
    types = {fields.string(name) for name in names}
    if len(types) > 1:
        raise ConfigError(
            f"{fields.prefix}rope_type and {fields.prefix}type differ: {', '.join(sorted(types))}"
        )
    if not types:
        scaled = sorted(fields.data.keys() - _COMMON_KEYS)
        if scaled:
            raise ConfigError(f"{fields.prefix}rope_type is missing, yet {', '.join(scaled)} is given")
        return "default"
    (rope_type,) = types
    if rope_type not in ROPE_TYPES:
        raise ConfigError(
            f"{fields.prefix}{names[0]}: rope type {rope_type!r} is not implemented"
            f"{nearest(rope_type, ROPE_TYPES)}"
        )
    return rope_type


def _unread_keys(fields: Fields, rope_type: str) -> list[str]:
    read = _COMMON_KEYS | _TYPE_KEYS[rope_type]
    return [
        f"{fields.prefix}{key} is not read for the rope type {rope_type!r}{nearest(key, read)}"
        for key in sorted(fields.data.keys() - read)
    ]


def _original_length(top: Fields, fields: Fields, max_position_embeddings: int) -> int:
    name = "original_max_position_embeddings"
    for holder in (top, fields):
        if name in holder.data and not holder.present(name):
            raise holder.wrong(name, "a number of tokens, or no such field; transformers refuses null, too")
    beside, inside = top.optional_integer(name), fields.optional_integer(name)
    if beside is not None and inside is not None and beside != inside:
        raise ConfigError(f"{name} is {beside} and {fields.prefix}{name} is {inside}; keep one of them")
    original = beside or inside or max_position_embeddings
    if original < 2:
        holder = top if beside is not None else fields
        raise ConfigError(f"{holder.prefix}{name}: expected at least 2 tokens for YaRN, found {original}")
    return original
