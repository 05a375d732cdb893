"""How weights are quantized: the contract that profiles, the exporter and the manifest share.

A weight ``w [out, in]`` is cut along ``in`` into blocks of :attr:`Quantization.block_size` values. A block
has one scale and one zero point, and ``w = (code - zero_point) * scale`` with unsigned codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from q2export.errors import ProfileError

WeightType = Literal["none", "int4", "int8"]
Method = Literal["round-to-nearest", "gptq"]
Activations = Literal["float32", "bfloat16", "int8"]

BITS: dict[str, int] = {"int4": 4, "int8": 8}
BLOCK_SIZES = (32, 64, 128)
PACKED_FORMAT_VERSION = 2
"""Of the form quantized weights are stored in, see ``exporter/checkpoint/packed.py``; packages say theirs."""
CALIBRATION_TOKENS = 32_768
"""Tokens of a text that methods that calibrate read unless asked otherwise."""


@dataclass(frozen=True)
class Scheme:
    """How one matrix is stored.

    Attributes:
        bits: of a code, 4 or 8.
        block_size: values along ``in`` that share a scale and a zero point.
        symmetric: the zero point is ``2 ** (bits - 1)`` everywhere and is not stored.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """Number of codes; they run from 0 to ``levels - 1``."""
        return 1 << self.bits

    @property
    def default_zero_point(self) -> int:
        """Zero point of a symmetric scheme."""
        return self.levels // 2


@dataclass(frozen=True)
class Quantization:
    """What to quantize and how; the section ``quantization`` of a profile.

    Attributes:
        weights: type of the quantized weights; ``none`` leaves all as they are.
        block_size: values that share a scale: 32, 64 or 128.
        symmetric: codes are centred, with no stored zero points.
        method: ``round-to-nearest`` needs nothing but the weights; ``gptq`` (Frantar et al. 2022) needs
            calibration text.
        embedding: quantize the embedding and the head, too. A tied pair shares one quantized weight.
        keep: shell patterns of the Hugging Face names of weights to leave in high precision, such as
            ``model.layers.0.*``.
        activations: the type activations have in matmuls, on ONNX Runtime: rounded when they are multiplied,
            faster and less exact. ``int8``, block by block, with quantized weights; ``bfloat16`` with weights
            of that type that are not quantized. It says how an engine computes, not what is stored.
    """

    weights: WeightType = "none"
    block_size: int = 32
    symmetric: bool = True
    method: Method = "round-to-nearest"
    embedding: bool = True
    keep: tuple[str, ...] = ()
    activations: Activations = "float32"

    def __post_init__(self) -> None:
        choices = {
            "weights": WeightType,
            "method": Method,
            "activations": Activations,
        }
        for name, valid in ((name, get_args(kind)) for name, kind in choices.items()):
            if getattr(self, name) not in valid:
                raise ProfileError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(valid)}")
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise ProfileError(f"block_size is {self.block_size}, expected one of {sizes}")
        if self.enabled and self.activations == "bfloat16":
            raise ProfileError(
                f"activations is 'bfloat16', which is for weights that are not quantized, and weights is "
                f"{self.weights!r}: take 'int8' or 'float32'"
            )

    @property
    def enabled(self) -> bool:
        """Whether anything is quantized."""
        return self.weights != "none"


@dataclass(frozen=True)
class PackedQuantization(Scheme):
    """What is quantized in a checkpoint in the packed form, and how: its ``quantization_config`` says this.

    Attributes:
        method: where the codes come from: the method of quantization, or the format of the published
            checkpoint they were taken from (``gptq``, ``awq``).
        embedding, keep: as in :class:`Quantization`.
        input_order: the columns of all quantized weights but embedding and ``down_proj`` are permuted, as
            GPTQ's act-order wants it. (For ``down_proj`` the rows of gate and up can be permuted instead.)
    """

    method: str = "round-to-nearest"
    embedding: bool = True
    keep: tuple[str, ...] = ()
    input_order: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("bits", tuple(BITS.values())), ("block_size", BLOCK_SIZES)):
            value = getattr(self, name)
            if value not in choices:
                raise ProfileError(f"{name}: expected {' or '.join(map(str, choices))}, found {value}")

    @classmethod
    def of(cls, quantization: Quantization) -> PackedQuantization:
        """What quantizing this way gives; only where ``quantization.enabled``."""
        one = quantization
        bits = BITS[one.weights]
        return cls(bits, one.block_size, one.symmetric, one.method, one.embedding, one.keep)

    @property
    def title(self) -> str:
        """For people: ``int4, blocks of 32, symmetric, gptq``."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"int{self.bits}, blocks of {self.block_size}, {symmetry}, {self.method}"

    @property
    def scheme(self) -> Scheme:
        """Of every quantized weight."""
        return Scheme(self.bits, self.block_size, self.symmetric)


@dataclass(frozen=True)
class QualityThresholds:
    """What quantization may cost, measured against the unquantized model on a text.

    Attributes:
        max_perplexity_increase: ``quantized / unquantized - 1``; 0.05 allows five per cent.
        max_mean_kl: mean over all tokens of KL(unquantized || quantized), in nats.
        min_top1_agreement: fraction of tokens, 0 to 1, at which both rank the same token first.

    The defaults stop what is broken; they are no promise that an answer is as good as before.
    """

    max_perplexity_increase: float = 0.15
    max_mean_kl: float = 0.15
    min_top1_agreement: float = 0.75

    def __post_init__(self) -> None:
        for name in ("max_perplexity_increase", "max_mean_kl"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ProfileError(f"quality.{name} must be finite and not negative, found {value}")
        if not 0 <= self.min_top1_agreement <= 1:
            raise ProfileError(
                f"quality.min_top1_agreement must be from 0 to 1, found {self.min_top1_agreement}"
            )
