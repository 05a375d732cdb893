"""Whether a model fits a GPU, and what building it takes: computed from shapes alone, before any work.

Three parts live in GPU memory: the weights; the KV cache of the largest batch and capacity; and what a step
takes: scratch memory, which TensorRT reserves for the largest step of all profiles, and the logits. What the
driver, the context and the kernels take besides is a fixed reserve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.contracts.memory import CacheShape
from q2export.contracts.profile import Profile
from q2export.plugins.tensorrt.workspace import reserved_bytes

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig

RESERVED_BYTES = 1 << 30
"""Of the GPU's memory, for the CUDA context, the kernels and fragmentation."""

_HIDDEN_IN_ATTENTION = 6
_HIDDEN_IN_MLP = 6
_HIDDEN_IN_EXPERTS = 9
_HIDDEN_IN_HEAD = 12
"""Copies of the hidden state alive at once, besides what an op reads and writes of other widths.

Fitted to the "Total Activation Memory" that TensorRT-RTX 1.7.1 logs when it builds for profile a100: 324.9 MB
for the shape of 0.5B, 476.6 with 128 logits, 1,251.8 for 7B, 1,218 to 1,250.9 for Qwen1.5-MoE-A2.7B; what is
planned is 0 to 3 % more. The full TensorRT has not been measured. That of attention is taken to be the MLP's.
"""

_ROUNDING = 1 << 20
"""What aligning every buffer of a step adds at most."""

HOST_BASE_BYTES = 512 << 20
HOST_BYTES_PER_WEIGHT_BYTE = 1.75
"""RAM a build takes: PyTorch and the libraries, and TensorRT's copies of the weights (docs/tensorrt.md).

Measured with TensorRT-RTX 1.7.1: 1.6 bytes per byte of weights, dense and mixture of experts. The mapped
files of the checkpoint count as resident memory too, but the system takes them back when it needs to.
"""


@dataclass(frozen=True)
class GpuNeed:
    """Bytes an engine needs on the GPU, by part; ``streamed_weights`` are those that stay in host memory."""

    batch: int
    capacity: int
    weights: int
    kv_cache: int
    activations: int
    streamed_weights: int = 0

    @property
    def total(self) -> int:
        """All parts and the reserve."""
        return self.weights + self.kv_cache + self.activations + RESERVED_BYTES


@dataclass(frozen=True)
class MemoryBudget:
    """What an engine of one model would need, for any batch and capacity.

    Attributes:
        config: the model.
        dtype: of weights, activations and KV cache: ``float16`` or ``bfloat16``.
        weight_bytes: of all weights.
        chunk: tokens per sequence of the largest step. logits: positions per sequence it returns.
        streamed: whether weights for which there is no room stay in host memory.
    """

    config: ModelConfig
    dtype: str
    weight_bytes: int
    chunk: int
    logits: int
    streamed: bool = False

    def need(self, batch: int, capacity: int, available: int | None = None) -> GpuNeed:
        """What a batch of sequences of ``capacity`` tokens needs.

        Streamed weights take what the rest leaves of ``available`` bytes, at least what staging them takes.
        """
        config = self.config
        cache = CacheShape(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, self.dtype)
        kv_cache = batch * capacity * cache.bytes_per_token
        step = self.activations(batch, min(self.chunk, capacity))
        weights = self.weight_bytes
        if self.streamed and available is not None:
            room = available - kv_cache - step - RESERVED_BYTES
            weights = min(weights, max(room, self._staging_bytes))
        return GpuNeed(batch, capacity, weights, kv_cache, step, self.weight_bytes - weights)

    @property
    def _staging_bytes(self) -> int:
        """Room for the largest weight and for the next one, as large at most."""
        config = self.config
        widest = max(
            config.vocab_size, config.intermediate_size, config.num_attention_heads * config.head_dim
        )
        return 2 * widest * config.hidden_size * BY_NAME[self.dtype].itemsize

    def activations(self, batch: int, sequence: int) -> int:
        """Bytes the largest step takes: TensorRT's scratch memory, and the float32 logits it returns.

        Layers and head run one after the other in the same scratch memory; the logits lie outside of it.
        """
        rows = batch * min(self.logits, sequence)
        scratch = max(self._layer(batch, sequence), self._head(batch * sequence, rows))
        return _ROUNDING + scratch + rows * self.config.vocab_size * BY_NAME["float32"].itemsize

    def _layer(self, batch: int, sequence: int) -> int:
        config, itemsize, tokens = self.config, BY_NAME[self.dtype].itemsize, batch * sequence
        heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads  # q, k, v and the output
        attention = _HIDDEN_IN_ATTENTION * config.hidden_size + heads * config.head_dim
        sizes = {"Hq": config.num_attention_heads, "Hkv": config.num_key_value_heads, "D": config.head_dim}
        workspace = reserved_bytes(opspec.ROTARY_ATTENTION, {"B": batch, "S": sequence, **sizes}, {})
        mlps = (self._mlp(layer, tokens) for layer in _kinds(config))
        return max(tokens * attention * itemsize + workspace, *mlps)

    def _mlp(self, layer: int, tokens: int) -> int:
        """Bytes alive at once in the MLP of one layer."""
        config, moe, itemsize = self.config, self.config.moe, BY_NAME[self.dtype].itemsize
        if moe is None or not config.is_moe_layer(layer):
            return tokens * (_HIDDEN_IN_MLP * config.hidden_size + 3 * config.intermediate_size) * itemsize
        shared = 3 * moe.shared_expert_intermediate_size
        width = _HIDDEN_IN_EXPERTS * config.hidden_size + shared + moe.num_experts
        sizes = {"T": tokens, "H": config.hidden_size, "E": moe.num_experts, "I": moe.moe_intermediate_size}
        workspace = reserved_bytes(opspec.MOE, sizes, {"top_k": moe.num_experts_per_tok})
        return tokens * width * itemsize + workspace

    def _head(self, tokens: int, rows: int) -> int:
        """Bytes alive at once in the head, which rounds logits to the graph's type."""
        config = self.config
        elements = tokens * _HIDDEN_IN_HEAD * config.hidden_size + rows * config.vocab_size
        return elements * BY_NAME[self.dtype].itemsize

    def largest_capacity(self, batch: int, most: int, available: int) -> int:
        """Largest capacity up to ``most`` that fits ``available`` bytes; 0 if none does."""
        return _largest(most, lambda capacity: self.need(batch, capacity, available).total <= available)

    def largest_batch(self, capacity: int, most: int, available: int) -> int:
        """Largest batch up to ``most`` that fits ``available`` bytes; 0 if none does."""
        return _largest(most, lambda batch: self.need(batch, capacity, available).total <= available)


def budget(config: ModelConfig, dtype: str, weight_bytes: int, profile: Profile) -> MemoryBudget:
    """The budget of a model under a profile."""
    chunk, logits = profile.prefill_chunk, profile.max_logits
    return MemoryBudget(config, dtype, weight_bytes, chunk, logits, profile.weight_streaming)


def host_bytes_to_build(weight_bytes: int) -> int:
    """RAM a build takes at its peak, in bytes."""
    return HOST_BASE_BYTES + int(HOST_BYTES_PER_WEIGHT_BYTE * weight_bytes)


def _kinds(config: ModelConfig) -> Iterator[int]:
    """One layer of each kind of MLP."""
    seen = set()
    for layer in range(config.num_hidden_layers):
        if config.is_moe_layer(layer) not in seen:
            seen.add(config.is_moe_layer(layer))
            yield layer


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """Largest of 1 to ``most`` that fits, where everything smaller than one that fits does too; else 0."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
