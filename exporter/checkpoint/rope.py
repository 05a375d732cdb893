"""Rotary position embedding: its configuration and its inverse frequencies.

RoPE is Su et al. 2021 (arXiv:2104.09864); YaRN is Peng et al. 2023 (arXiv:2309.00071). The arithmetic follows
``modeling_rope_utils.py`` of transformers 5.23 step by step in float32, because at position 131,072 the last
bits of an inverse frequency show in the angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from q2export.errors import ConfigError
from q2export.strict.suggest import nearest

Float32Array = npt.NDArray[np.float32]

ROPE_TYPES = ("default", "linear", "yarn")
DEFAULT_ROPE_THETA = 10000.0  # transformers' PreTrainedConfig.default_theta, for a config that names none
DEFAULT_BETA_FAST = 32.0
DEFAULT_BETA_SLOW = 1.0


@dataclass(frozen=True)
class RopeParameters:
    """One model's rotary embedding, field names as in transformers' ``rope_parameters``.

    ``factor`` is 1 for the type ``default``; the fields after it are read by ``yarn`` only.

    Raises:
        ConfigError: if a value is out of range.
    """

    rope_type: str = "default"
    rope_theta: float = DEFAULT_ROPE_THETA
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    beta_fast: float = DEFAULT_BETA_FAST
    beta_slow: float = DEFAULT_BETA_SLOW
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ConfigError(
                f"rope type {self.rope_type!r} is not implemented{nearest(self.rope_type, ROPE_TYPES)}"
            )
        if not self.rope_theta > 1:
            raise ConfigError(f"rope_theta: expected a number greater than 1, found {self.rope_theta!r}")
        if not self.factor >= 1:
            raise ConfigError(f"rope factor: expected a number of at least 1, found {self.factor!r}")
        if self.rope_type == "yarn":
            if self.original_max_position_embeddings is None:
                raise ConfigError("YaRN needs original_max_position_embeddings")
            if self.beta_fast < self.beta_slow:
                raise ConfigError(
                    f"YaRN needs beta_fast >= beta_slow, found beta_fast {self.beta_fast!r} and "
                    f"beta_slow {self.beta_slow!r}"
                )


def inverse_frequencies(rope: RopeParameters, head_dim: int) -> tuple[Float32Array, float]:
    """Return the inverse frequencies, float32 ``[head_dim / 2]``, and the factor on both cos and sin.

    Equal to transformers' up to the last bit of ``pow``, where torch is not correctly rounded and this is.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(np.float32(rope.rope_theta)), exponents.astype(np.float64)).astype(
        np.float32
    )
    plain = np.float32(1) / powers
    if rope.rope_type == "default":
        return plain, 1.0
    if rope.rope_type == "linear":
        return plain / np.float32(rope.factor), 1.0
    interpolated = np.float32(1) / (np.float32(rope.factor) * powers)
    kept = np.float32(1) - _interpolation_ramp(rope, head_dim)  # share of the plain frequency
    blended = interpolated * (np.float32(1) - kept) + plain * kept
    return blended, attention_factor(rope)


def attention_factor(rope: RopeParameters) -> float:
    """The factor on cos and sin: 1 but for YaRN (section 3.4), whose own may be given in the config."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _interpolation_ramp(rope: RopeParameters, head_dim: int) -> Float32Array:
    """0 where a frequency is kept, 1 where it is interpolated; float32 ``[head_dim / 2]`` (YaRN, 3.2)."""
    low = _correction_dim(rope, rope.beta_fast, head_dim)
    high = _correction_dim(rope, rope.beta_slow, head_dim)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # as upstream: the ramp becomes a step
    index = np.arange(head_dim // 2, dtype=np.float32)
    ramp: Float32Array = (index - np.float32(low)) / np.float32(high - low)
    clipped: Float32Array = np.clip(ramp, 0, 1)
    return clipped


def _correction_dim(rope: RopeParameters, rotations: float, head_dim: int) -> float:
    """The dimension whose wave makes ``rotations`` turns within the original context."""
    assert rope.original_max_position_embeddings is not None  # checked by RopeParameters
    turns = rope.original_max_position_embeddings / (rotations * 2 * math.pi)
    return (head_dim * math.log(turns)) / (2 * math.log(rope.rope_theta))
