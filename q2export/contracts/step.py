"""The inputs and outputs of every graph and engine, declared once.

One step appends ``query_lengths[b]`` tokens, ``input_ids[b, :query_lengths[b]]``, to the ``past_lengths[b]``
tokens that row ``b`` of the KV cache holds, and gives the logits at the positions ``logits_indices[b]`` of
the new tokens. Every layer has a cache of its own, and what a step makes of it lies where it lay:
``present_*`` shares the memory of ``past_*``.

The exporter makes graphs of these, engine builders give each dynamic size its range, and runtimes bind
memory to the names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BATCH, SEQUENCE, WANTED, CAPACITY = "batch", "sequence", "wanted", "capacity"
DYNAMIC = (BATCH, SEQUENCE, WANTED, CAPACITY)
"""Sizes that change from step to step: rows; new tokens per row, padding included; positions per row whose
logits are asked for, 0 or more; tokens per row that the cache has room for."""


@dataclass(frozen=True)
class StepTensor:
    """An input or output.

    Attributes:
        name: in the graph; of a cache without its layer, ``past_key`` for ``past_key.0``.
        dtype: a name of :mod:`q2export.contracts.dtypes`, or ``kv_dtype`` for that of the cache.
        shape: per axis one of :data:`DYNAMIC`, or the field of :class:`StepSignature` that has its size; in
            :meth:`StepSignature.inputs` and ``outputs``, that size.
    """

    name: str
    dtype: str
    shape: tuple[str | int, ...]

    def at(self, layer: int) -> str:
        """Name of a layer's cache, ``past_key.3``."""
        return f"{self.name}.{layer}"


_CACHE = (BATCH, "num_key_value_heads", CAPACITY, "head_dim")

INPUT_IDS = StepTensor("input_ids", "int64", (BATCH, SEQUENCE))
PAST_LENGTHS = StepTensor("past_lengths", "int64", (BATCH,))
QUERY_LENGTHS = StepTensor("query_lengths", "int64", (BATCH,))
LOGITS_INDICES = StepTensor("logits_indices", "int64", (BATCH, WANTED))
STEP_INPUTS = (INPUT_IDS, PAST_LENGTHS, QUERY_LENGTHS, LOGITS_INDICES)
"""What every step brings; a graph that only fills the cache has all but the last."""

PAST = (StepTensor("past_key", "kv_dtype", _CACHE), StepTensor("past_value", "kv_dtype", _CACHE))
PRESENT = (StepTensor("present_key", "kv_dtype", _CACHE), StepTensor("present_value", "kv_dtype", _CACHE))
LOGITS = StepTensor("logits", "float32", (BATCH, WANTED, "vocab_size"))


@dataclass(frozen=True)
class CacheNames:
    """The keys (``index`` 0) or values (1) of one layer: the names of the input and of the output."""

    layer: int
    index: int
    past: str
    present: str


def cache_names(num_hidden_layers: int) -> Iterator[CacheNames]:
    """Names of the cache, layer by layer, keys first: the order of the graph."""
    for layer in range(num_hidden_layers):
        for index, (past, present) in enumerate(zip(PAST, PRESENT, strict=True)):
            yield CacheNames(layer, index, past.at(layer), present.at(layer))


def tensor_named(name: str) -> StepTensor | None:
    """The declaration of an input or output, ``past_key`` for ``past_key.3``; None if there is none."""
    kind = name.partition(".")[0]
    return next((each for each in (*STEP_INPUTS, *PAST, LOGITS, *PRESENT) if each.name == kind), None)


@dataclass(frozen=True)
class StepSignature:
    """The inputs and outputs of one model, in order."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    kv_dtype: str

    @property
    def inputs(self) -> tuple[StepTensor, ...]:
        """The step's own inputs, then the caches of all layers."""
        fixed = tuple(self._sized(each, each.name) for each in STEP_INPUTS)
        names = cache_names(self.num_hidden_layers)
        return fixed + tuple(self._sized(PAST[each.index], each.past) for each in names)

    @property
    def outputs(self) -> tuple[StepTensor, ...]:
        """The logits, then the caches of all layers."""
        names = cache_names(self.num_hidden_layers)
        caches = tuple(self._sized(PRESENT[each.index], each.present) for each in names)
        return (self._sized(LOGITS, LOGITS.name), *caches)

    def _sized(self, tensor: StepTensor, name: str) -> StepTensor:
        shape = tuple(size if size in DYNAMIC else int(getattr(self, str(size))) for size in tensor.shape)
        return StepTensor(name, self.kv_dtype if tensor.dtype == "kv_dtype" else tensor.dtype, shape)
