"""The cases of ``cases.yaml``, and what a kind of case gives the runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from q2export.errors import Q2ExportError
from q2export.strict.codec import Source, from_plain
from q2export.strict.suggest import nearest
from q2export.strict.yaml import read_yaml

CASES = Path(__file__).with_name("cases.yaml")
Launch = Callable[[], Tensor]
"""Queues one call and returns its output."""


class KernelBenchmarkError(Q2ExportError):
    """A case is described wrongly, or cannot be measured here."""


@dataclass(frozen=True)
class AttentionShape:
    """Attention of one layer: ``query`` new tokens per row on top of ``past``.

    Attributes:
        batch: rows.
        past: tokens in the cache.
        query: new tokens.
        num_heads, num_kv_heads, head_dim: of the layer.
        other_past: tokens in the cache of all rows but the first; None where they are all of one length.
    """

    batch: int
    past: int
    query: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    other_past: int | None = None

    @property
    def pasts(self) -> list[int]:
        """Tokens in the cache of each row."""
        others = self.past if self.other_past is None else self.other_past
        return [self.past] + [others] * (self.batch - 1)


@dataclass(frozen=True)
class MoeShape:
    """The routed experts of one layer; with ``bits`` of 4 or 8 their weights are packed, in blocks of 32."""

    tokens: int
    hidden_size: int
    intermediate_size: int
    num_experts: int
    top_k: int
    bits: int = 16


@dataclass(frozen=True)
class DecoderShape:
    """A dense model with random weights, generating greedily at batch 1."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    prompt: int
    new_tokens: int


Shape = AttentionShape | MoeShape | DecoderShape
KINDS: Mapping[str, type[AttentionShape | MoeShape | DecoderShape]] = {
    "rotary": AttentionShape,
    "decode_attention": AttentionShape,
    "prefill_attention": AttentionShape,
    "moe": MoeShape,
    "decoder": DecoderShape,
}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        name: unique.
        kind: a key of :data:`KINDS`.
        dtype: ``float16`` or ``bfloat16``.
        shape: sizes.
        bars: what is to be reached, by measure: ``copy_bandwidth`` and ``matrix_peak`` (fractions),
            ``microseconds`` (at most), or ``speedup:PEER``.
    """

    name: str
    kind: str
    dtype: str
    shape: Shape
    bars: Mapping[str, float]

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as PyTorch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass
class Workload:
    """A case on tensors of a device.

    Attributes:
        subject: one launch per set of inputs; more sets than the L2 cache holds.
        peers: the same for everything it is compared with.
        reference: float32 output of the first set.
        bytes_moved: of one launch, each input read and each output written once.
        flops: of one launch; multiplications and additions.
        skipped: peers that cannot run, with the reason.
    """

    subject: Sequence[Launch]
    peers: dict[str, Sequence[Launch]]
    reference: Tensor
    bytes_moved: int
    flops: int
    skipped: dict[str, str] = field(default_factory=dict)


def first_line(error: Exception) -> str:
    """Of an error's message, or the name of its class where there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def load_cases(path: Path = CASES) -> list[Case]:
    """Read the cases.

    Raises:
        KernelBenchmarkError: a kind is unknown, or a size missing or of the wrong type.
    """
    data: Any = read_yaml(path, KernelBenchmarkError)
    return [_parse(name, entry, str(path)) for name, entry in data.items()]


def _parse(name: str, entry: Mapping[str, Any], path: str) -> Case:
    kind = entry.get("kind", "")
    if kind not in KINDS:
        raise KernelBenchmarkError(f"{path}: {name}: unknown kind {kind!r}{nearest(str(kind), KINDS)}")
    if entry.get("dtype") not in ("float16", "bfloat16"):
        raise KernelBenchmarkError(
            f"{path}: {name}: dtype is {entry.get('dtype')!r}, expected float16 or bfloat16"
        )
    sizes = entry.get("shape")
    if KINDS[kind] is AttentionShape and isinstance(sizes, Mapping):
        sizes = {"other_past": None, **sizes}
    shape = from_plain(KINDS[kind], sizes, Source(f"{path}: {name}", KernelBenchmarkError))
    return Case(name, kind, entry["dtype"], shape, dict(entry.get("bars", {})))
