"""``quantization_config`` in the ``config.json`` of a checkpoint in the packed form.

Together with the rest of ``config.json`` it says which tensors the checkpoint holds, all of them
(:func:`q2export.exporter.checkpoint.selection.select_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from q2export.contracts.quantization import BITS, BLOCK_SIZES, Scheme
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.packed import PackedQuantization
from q2export.strict.codec import Source, from_plain, to_plain

CONFIG_KEY = "quantization_config"
QUANT_METHOD = "q2export"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Section:
    """The fields, in their order in the file."""

    quant_method: str
    format_version: int
    bits: int
    block_size: int
    symmetric: bool
    method: str
    embedding: bool
    keep: tuple[str, ...]
    input_order: bool


def is_packed(section: object) -> bool:
    """Whether a ``quantization_config`` is that of the packed form, of whatever version."""
    return isinstance(section, Mapping) and section.get("quant_method") == QUANT_METHOD


def config_section(packed: PackedQuantization) -> dict[str, Any]:
    """The section that says how a checkpoint was quantized."""
    section: dict[str, Any] = to_plain(
        _Section(
            quant_method=QUANT_METHOD,
            format_version=FORMAT_VERSION,
            bits=packed.scheme.bits,
            block_size=packed.scheme.block_size,
            symmetric=packed.scheme.symmetric,
            method=packed.method,
            embedding=packed.embedding,
            keep=packed.keep,
            input_order=packed.input_order,
        )
    )
    return section


def parse_section(section: object) -> PackedQuantization:
    """Read the section back, strictly.

    Args:
        section: value of ``quantization_config``.

    Raises:
        ConfigError: another method or version, an unknown or missing field, a value out of range.
    """
    if not isinstance(section, Mapping) or section.get("quant_method") != QUANT_METHOD:
        raise ConfigError(f"{CONFIG_KEY}: expected quant_method {QUANT_METHOD!r}")
    version = section.get("format_version")
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{CONFIG_KEY}.format_version: expected {FORMAT_VERSION}, found {version!r}; quantize the model "
            "again with this version of q2export"
        )
    fields = from_plain(_Section, section, Source(CONFIG_KEY, ConfigError))
    for name, choices in (("bits", tuple(BITS.values())), ("block_size", BLOCK_SIZES)):
        value = getattr(fields, name)
        if value not in choices:
            raise ConfigError(
                f"{CONFIG_KEY}.{name}: expected {' or '.join(map(str, choices))}, found {value}"
            )
    return PackedQuantization(
        Scheme(fields.bits, fields.block_size, fields.symmetric),
        fields.method,
        fields.embedding,
        fields.keep,
        fields.input_order,
    )
