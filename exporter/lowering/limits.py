"""What a target does not take of quantized weights, said before any work is done."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from q2export.errors import ExportError
from q2export.exporter.checkpoint.packed import PackedWeight

_ROUTED_EXPERTS = ".mlp.experts."


def check_int8_prefill(target: str, weights: Collection[str]) -> None:
    """Refuse a prefill graph with int8 copies of the weights where there is none.

    Args:
        target: see :data:`q2export.exporter.export.Target`.
        weights: names of the quantized weights.

    Raises:
        ExportError: naming what stands against it.
    """
    asked = "quantization.prefill is 'int8'"
    if target != "onnxruntime":
        raise ExportError(f"{asked}, which is for ONNX Runtime, not for target {target!r}: leave it 'shared'")
    if not weights:
        raise ExportError(f"{asked}, but no weight is quantized: leave it 'shared', or quantize the weights")
    if any(_ROUTED_EXPERTS in name for name in weights):
        raise ExportError(
            f"{asked}, but the model has routed experts, whose kernel would hold its weights twice: leave it "
            "'shared'"
        )


def check_quantized(target: str, weights: Iterable[PackedWeight]) -> None:
    """Refuse quantized weights that a target could only ignore, or that would have to be dequantized whole.

    Args:
        target: see :data:`q2export.exporter.export.Target`.
        weights: the quantized weights.

    Raises:
        ExportError: naming the first such weight, and what to do.
    """
    if target != "tensorrt":
        return
    for weight in weights:
        if not weight.scheme.symmetric:
            raise ExportError(
                f"{weight.name!r} is quantized with zero points, and TensorRT takes none for blocks; "
                "quantize with quantization.symmetric=true, or take the unquantized checkpoint"
            )
        if _ROUTED_EXPERTS in weight.name:
            raise ExportError(
                f"{weight.name!r} is quantized, and the TensorRT plugin for mixtures of experts takes 16-bit "
                "weights; leave the experts in high precision with quantization.keep=['*.experts.*']"
            )
