"""The zero points of a published weight."""

from __future__ import annotations

import numpy as np

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.quantization.published.match import PublishedWeight
from q2export.exporter.quantization.published.packing import WORD_BITS, Packing, UInt8Array
from q2export.exporter.quantization.published.tensor_files import TensorFiles
from q2export.strict.json import shown


def are_default(
    files: TensorFiles, weight: PublishedWeight, packing: Packing, quantization: PublishedQuantization
) -> bool:
    """Whether all zero points are ``2 ** (bits - 1)``, so that they need not be stored.

    Raises:
        CheckpointError: they are not, though the model is said to be symmetric; or one cannot be told.
    """
    bits, default = quantization.bits, 1 << (quantization.bits - 1)
    packed = default - packing.zero_point_offset
    word = sum(packed << shift for shift in range(0, WORD_BITS, bits))
    if (files.read(weight.qzeros) == np.uint32(word)).all():
        return True
    zero_points = read_zero_points(files, weight, packing, bits)
    if quantization.symmetric:
        group, output = np.unravel_index(int(np.argmax(zero_points != default)), zero_points.shape)
        raise CheckpointError(
            f"{weight.qzeros.file}: tensor {shown(weight.qzeros.name)}: expected zero point {default} "
            "everywhere, for sym is true in quantization_config, found "
            f"{int(zero_points[group, output])} for group {int(group)} of output {int(output)}; correct sym, "
            "or checkpoint_format: 'gptq' packs zero points less one, 'gptq_v2' as they are"
        )
    return False


def read_zero_points(files: TensorFiles, weight: PublishedWeight, packing: Packing, bits: int) -> UInt8Array:
    """All zero points of a weight, ``[groups, out]``.

    GPTQ's first format packs them less one. What it makes of zero point 0 is not defined: AutoGPTQ 0.7.1
    packs it over the outputs above and reads the largest code as 0 or as ``2 ** bits`` (qlinear_cuda_old.py,
    qlinear_cuda.py), and GPTQModel 7.7.0 subtracts and adds with a carry from one output to the next.

    Raises:
        CheckpointError: there is such a one.
    """
    packed = packing.zero_points(files.read(weight.qzeros).view("<u4"))
    if not packing.zero_point_offset:
        return packed
    largest = (1 << bits) - 1
    if (packed == largest).any():
        group, output = np.unravel_index(int(np.argmax(packed == largest)), packed.shape)
        raise CheckpointError(
            f"{weight.qzeros.file}: tensor {shown(weight.qzeros.name)}: the packed zero point for group "
            f"{int(group)} of output {int(output)} is {largest}, which readers of checkpoint_format 'gptq' "
            f"take for 0 or for {largest + 1}; convert the model to 'gptq_v2' with the tool that made it"
        )
    zero_points: UInt8Array = packed + np.uint8(packing.zero_point_offset)
    return zero_points
