"""What a target does not take of quantized weights, said before any work is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING

from q2export.contracts.quantization import Activations
from q2export.errors import ExportError
from q2export.exporter.checkpoint.packed import PackedWeight

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig

_GPU = {"tensorrt": "TensorRT", "onnxruntime-cuda": "ONNX Runtime on CUDA"}
_MATRICES_OF_EXPERT = 3


def check_activations(target: str, activations: Activations, dtype: str, quantized: bool) -> None:
    """Refuse a type of activations that nothing would have.

    Args:
        target: see :data:`q2export.exporter.export.Target`.
        activations: see :class:`q2export.contracts.quantization.Quantization`.
        dtype: of the weights that are not quantized.
        quantized: whether weights are.

    Raises:
        ExportError: naming what stands against it.
    """
    asked = f"quantization.activations is {activations!r}"
    if target != "onnxruntime" and activations != "float32":
        raise ExportError(
            f"{asked}, which is for ONNX Runtime, not for target {target!r}: leave it 'float32'"
        )
    if activations == "bfloat16" and quantized:
        raise ExportError(f"{asked}, but weights are quantized: take 'int8' or 'float32'")
    if activations == "bfloat16" and dtype != "bfloat16":
        raise ExportError(
            f"{asked}, which is for what multiplies bfloat16 weights; those of the checkpoint are {dtype}: "
            "take 'float32'"
        )


def check_quantized(target: str, weights: Collection[PackedWeight], config: ModelConfig) -> None:
    """Refuse quantized weights that a target could only ignore, or that would have to be dequantized whole.

    Args:
        target: see :data:`q2export.exporter.export.Target`.
        weights: the quantized weights.
        config: of the model.

    Raises:
        ExportError: naming the first such weight, and what to do.
    """
    if target not in _GPU:
        return
    title = _GPU[target]
    for weight in weights:
        if not weight.scheme.symmetric:
            raise ExportError(
                f"{weight.name!r} is quantized with zero points, and {title} takes none for blocks; "
                "quantize with quantization.symmetric=true, or take the unquantized checkpoint"
            )
    if config.moe is not None:
        _check_whole_mixtures(title, weights, config.moe.num_experts * _MATRICES_OF_EXPERT)


def _check_whole_mixtures(title: str, weights: Collection[PackedWeight], matrices: int) -> None:
    """Refuse a layer some of whose experts' matrices are quantized: a kernel has them all in one form."""
    prefixes = [one.name.partition(".experts.")[0] for one in weights if one.is_routed_expert]
    for prefix, count in Counter(prefixes).items():
        if count != matrices:
            raise ExportError(
                f"{count} of the {matrices} matrices of the experts '{prefix}.experts.*' are quantized, and "
                f"our kernels for {title} take all or none: quantization.keep must name all experts of the "
                f"layer, such as '{prefix}.experts.*', or none"
            )
