"""``quantization_config`` in the ``config.json`` of a checkpoint in the packed form.

Together with the rest of ``config.json`` it says which tensors the checkpoint holds, all of them
(:func:`q2export.exporter.checkpoint.selection.select_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from q2export.contracts.quantization import PACKED_FORMAT_VERSION, PackedQuantization
from q2export.errors import ConfigError
from q2export.strict.codec import Source, from_plain, to_plain

CONFIG_KEY = "quantization_config"
UNPADDED_KEY = "q2export_unpadded_sizes"
"""Of ``config.json``: intermediate sizes before they were rounded up with zeros to whole blocks."""
QUANT_METHOD = "q2export"


def is_packed(section: object) -> bool:
    """Whether a ``quantization_config`` is that of the packed form, of whatever version."""
    return isinstance(section, Mapping) and section.get("quant_method") == QUANT_METHOD


def config_section(quantization: PackedQuantization) -> dict[str, Any]:
    """The section that says how a checkpoint was quantized."""
    head = {"quant_method": QUANT_METHOD, "format_version": PACKED_FORMAT_VERSION}
    return {**head, **to_plain(quantization)}


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
    if version != PACKED_FORMAT_VERSION:
        raise ConfigError(
            f"{CONFIG_KEY}.format_version: expected {PACKED_FORMAT_VERSION}, found {version!r}; make it "
            "again with this version: q2export quantize (or q2export repack) --model ... --output ..."
        )
    fields = {
        name: value for name, value in section.items() if name not in ("quant_method", "format_version")
    }
    return from_plain(PackedQuantization, fields, Source(CONFIG_KEY, ConfigError))
