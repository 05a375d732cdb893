"""A checkpoint folder in the packed form: weights, configuration, and the texts of the original."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.progress import Advance, silent
from q2export.contracts.quantization import PackedQuantization, Quantization
from q2export.errors import ConfigError, PackageError
from q2export.exporter.checkpoint.folder import TEXT_FILES
from q2export.exporter.checkpoint.packed_config import CONFIG_KEY, UNPADDED_KEY, config_section, is_packed
from q2export.exporter.quantization.quantize import (
    THREADS,
    QuantizeResult,
    check_not_quantized,
    quantize_weights,
)
from q2export.exporter.quantization.quantizer import Quantizer
from q2export.package.hashing import HashingWriter
from q2export.package.output import staged_output
from q2export.package.placement import copy_file
from q2export.strict.json import read_object

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.source import Source

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_MAX_CONFIG_BYTES = 16 << 20


def quantize_checkpoint(
    source: Source,
    output: Path,
    quantization: Quantization,
    *,
    quantizer: Quantizer | None = None,
    threads: int = THREADS,
    overwrite: bool = False,
    advance: Advance = silent,
) -> QuantizeResult:
    """Write a quantized checkpoint folder, all of it or nothing.

    Args:
        source: the checkpoint, not quantized itself.
        output: folder to make; missing parents are made, too.
        quantization, quantizer, threads, advance: as in
            :func:`~q2export.exporter.quantization.quantize.quantize_weights`.
        overwrite: replace ``output`` if it is a checkpoint in the packed form with nothing else in it.

    Raises:
        ProfileError, CheckpointError: as in ``quantize_weights``.
        PackageError: the output is in the way, cannot be written, or does not fit.
    """
    check_not_quantized(source)
    with staged_output(output, overwrite, written_files) as staging:
        path = staging.folder / WEIGHTS_FILE
        result = quantize_weights(
            source, path, quantization, quantizer=quantizer, threads=threads, advance=advance
        )
        write_texts(source.folder, staging.folder, PackedQuantization.of(quantization), result.padded)
    return result


def write_texts(
    source: Path, folder: Path, packed: PackedQuantization, sizes: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Write ``config.json``, as :func:`write_config` does, and copy tokenizer and generation settings."""
    write_config(source, folder, packed, sizes)
    for name in TEXT_FILES:
        if (source / name).is_file():
            copy_file(source / name, folder / name)


def write_config(
    source: Path, folder: Path, packed: PackedQuantization, sizes: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Write ``config.json`` with its ``quantization_config``.

    Args:
        source: folder of the original checkpoint.
        folder: that of the quantized one.
        packed: what is quantized.
        sizes: fields of ``config.json`` that have another value now, with the size before and after.
    """
    config = read_object(source / CONFIG_FILE, _MAX_CONFIG_BYTES, ConfigError)
    if sizes:
        config |= {name: after for name, (_, after) in sizes.items()}
        config[UNPADDED_KEY] = {name: before for name, (before, _) in sizes.items()}
    config[CONFIG_KEY] = config_section(packed)
    with HashingWriter(folder / CONFIG_FILE) as file:
        file.write((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())


def written_files(output: Path) -> set[str]:
    """Files of a checkpoint in the packed form, which alone may be replaced.

    Raises:
        PackageError: ``output`` is no such checkpoint.
    """
    try:
        config = read_object(output / CONFIG_FILE, _MAX_CONFIG_BYTES, PackageError)
    except PackageError as error:
        raise PackageError(f"it is no checkpoint ({error})") from None
    if not is_packed(config.get(CONFIG_KEY)):
        raise PackageError("it is no checkpoint that q2export quantized")
    return {WEIGHTS_FILE, CONFIG_FILE, *TEXT_FILES}
