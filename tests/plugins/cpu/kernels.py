"""The CPU kernels of ``plugins/csrc/cpu``, called through their C ABI on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import byref, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
"""``q2export_dtype``."""

ISAS = {"portable": 0, "avx2": 1, "avx512": 2, "avx512_bf16": 3}
"""``q2export_cpu_isa``."""

Floats = NDArray[np.float32]


class LinearDesc(ctypes.Structure):
    """``q2export_cpu_linear_desc``."""

    _fields_ = (
        ("rows", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("weight_dtype", c_int32),
        ("bias_dtype", c_int32),
        ("activations", c_int32),
    )


class QuantizedLinearDesc(ctypes.Structure):
    """``q2export_cpu_quantized_linear_desc``."""

    _fields_ = (
        ("rows", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("bits", c_int32),
        ("block_size", c_int32),
        ("bias_dtype", c_int32),
        ("activations", c_int32),
    )


class QuantizedGatherDesc(ctypes.Structure):
    """``q2export_cpu_quantized_gather_desc``."""

    _fields_ = (
        ("count", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("bits", c_int32),
        ("block_size", c_int32),
    )


class AttentionDesc(ctypes.Structure):
    """``q2export_cpu_attention_desc``."""

    _fields_ = (
        ("batch", c_int64),
        ("sequence", c_int64),
        ("capacity", c_int64),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("sliding_window", c_int32),
        ("cache_dtype", c_int32),
        ("scale", c_float),
        ("attention_factor", c_float),
    )


class MoeDesc(ctypes.Structure):
    """``q2export_cpu_moe_desc``."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("num_experts", c_int32),
        ("top_k", c_int32),
        ("norm_topk_prob", c_int32),
        ("weight_dtype", c_int32),
        ("activations", c_int32),
    )


class QuantizedMoeDesc(ctypes.Structure):
    """``q2export_cpu_quantized_moe_desc``."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("num_experts", c_int32),
        ("top_k", c_int32),
        ("norm_topk_prob", c_int32),
        ("bits", c_int32),
        ("block_size", c_int32),
        ("activations", c_int32),
    )


class ParallelFor(ctypes.Structure):
    """``q2export_cpu_parallel_for``."""

    _fields_ = (("run", c_void_p), ("context", c_void_p))


class KernelError(Exception):
    """A kernel function refused; the message is that of ``q2export_cpu_last_error``."""


def address(array: NDArray[np.generic] | None) -> c_void_p | None:
    """Where an array's elements are."""
    return None if array is None else c_void_p(array.ctypes.data)


def stored(values: Floats, dtype: int) -> NDArray[np.generic]:
    """Values rounded to an element type, as it lies in memory."""
    if dtype == FLOAT32:
        return values
    if dtype == FLOAT16:
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(array: NDArray[np.generic], dtype: int) -> Floats:
    """What the elements of :func:`stored` mean."""
    if dtype == BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def at_odd_address(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """The same bytes two bytes behind a cache line, as a checkpoint may have them, and nothing after them."""
    buffer = np.empty(array.nbytes + 66, np.uint8)
    start = -buffer.ctypes.data % 64 + 2
    found = buffer[start : start + array.nbytes]
    found[:] = array.reshape(-1).view(np.uint8)
    return found


@dataclass(frozen=True)
class Packed:
    """A random weight in the packed form of ``exporter/checkpoint/packed.py``.

    Attributes:
        bits, block_size: of the scheme.
        codes, scales, zero_points: as they lie in memory; no zero points where the scheme is symmetric.
        values: float64 ``[out, in]``, what they mean.
    """

    bits: int
    block_size: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero_points: NDArray[np.uint8] | None
    values: NDArray[np.float64]

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        bits: int,
        block_size: int,
        symmetric: bool = True,
    ) -> Packed:
        """One of a shape ``[out, in]``."""
        rng = np.random.default_rng([*shape, bits, block_size])
        blocks = (shape[0], shape[1] // block_size)
        codes = rng.integers(0, 2**bits, shape, np.uint8)
        scales = (rng.standard_normal(blocks) / 2**bits).astype(np.float16)
        points = rng.integers(0, 2**bits, blocks, np.uint8)
        if symmetric:
            points[:] = 2 ** (bits - 1)
        spread = np.repeat(points.astype(np.float64), block_size, 1)
        values = (codes - spread) * np.repeat(scales.astype(np.float64), block_size, 1)
        zero_points = None if symmetric else _packed(points, bits)
        return cls(bits, block_size, _packed(codes, bits), scales, zero_points, values)


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: NDArray[np.uint8] = even[:, ::2] | np.left_shift(even[:, 1::2], 4, dtype=np.uint8)
    return packed


@dataclass(frozen=True)
class Experts:
    """Weights per expert, as :func:`stored`: gate and up ``[inner, hidden]``, down ``[hidden, inner]``."""

    gate: Sequence[NDArray[np.generic]]
    up: Sequence[NDArray[np.generic]]
    down: Sequence[NDArray[np.generic]]
    dtype: int


@dataclass(frozen=True)
class PackedExperts:
    """Packed weights of ``count`` experts, one after the other.

    Attributes:
        count: of experts.
        gate_up: ``[count * 2 * inner, hidden]``; rows of gate and up alternate.
        down: ``[count * hidden, inner]``.
    """

    count: int
    gate_up: Packed
    down: Packed

    @classmethod
    def random(
        cls, sizes: tuple[int, int, int], bits: int, block_size: int, symmetric: bool
    ) -> PackedExperts:
        """Those of ``(count, hidden, inner)``."""
        count, hidden, inner = sizes
        rest = (bits, block_size, symmetric)
        gate_up = Packed.random((count * 2 * inner, hidden), *rest)
        return cls(count, gate_up, Packed.random((count * hidden, inner), *rest))

    def values(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Gate, up ``[count, inner, hidden]`` and down ``[count, hidden, inner]``."""
        hidden = self.gate_up.values.shape[1]
        pairs = self.gate_up.values.reshape(self.count, -1, 2, hidden)
        return pairs[:, :, 0], pairs[:, :, 1], self.down.values.reshape(self.count, hidden, -1)


@dataclass(frozen=True)
class Step:
    """Inputs of attention; shapes as in ``opspec.ROTARY_ATTENTION``, caches as :func:`stored` has them."""

    query: Floats
    key: Floats
    value: Floats
    key_cache: NDArray[np.generic]
    value_cache: NDArray[np.generic]
    past_lengths: Sequence[int]
    query_lengths: Sequence[int]
    inv_freq: Floats | None
    sliding_window: int = 0
    cache_dtype: int = FLOAT32
    attention_factor: float = 1.0


class CpuKernels:
    """The functions of ``cpu.h``; each returns new arrays and leaves its arguments alone."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_cpu_last_error.restype = ctypes.c_char_p

    def check(self, status: int) -> None:
        """Raise what a status other than 0 stands for."""
        if status:
            raise KernelError(self.library.q2export_cpu_last_error().decode())

    def select(self, isa: str) -> bool:
        """Use an instruction set from now on; false where the machine lacks it."""
        return bool(self.library.q2export_cpu_select_isa(ISAS[isa]) == 0)

    def linear(
        self,
        x: Floats,
        weight: NDArray[np.generic],
        out_features: int,
        dtype: int,
        bias: NDArray[np.generic] | None = None,
        bias_dtype: int = FLOAT32,
        activations: int = 0,
    ) -> Floats:
        """``x @ weight.T + bias``; x ``[rows, in]``, weight the bytes of ``[out, in]``."""
        x = np.ascontiguousarray(x)
        output = np.full((x.shape[0], out_features), np.nan, np.float32)
        desc = LinearDesc(*x.shape, out_features, dtype, bias_dtype, activations)
        pointers = map(address, (x, weight, bias, output))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, None))
        return output

    def quantized_linear(self, x: Floats, weight: Packed, int8: bool, bias: Floats | None = None) -> Floats:
        """``x @ weight.T + bias``, the activations rounded to int8 or not."""
        x = np.ascontiguousarray(x)
        outputs = weight.codes.shape[0]
        output = np.full((x.shape[0], outputs), np.nan, np.float32)
        desc = QuantizedLinearDesc(*x.shape, outputs, weight.bits, weight.block_size, 0, int(int8))
        held = (x, at_odd_address(weight.codes), weight.scales, weight.zero_points, bias, output)
        pointers = map(address, held)
        self.check(self.library.q2export_cpu_quantized_linear(byref(desc), *pointers, None))
        return output

    def quantized_gather(self, indices: NDArray[np.int64], weight: Packed) -> Floats:
        """Rows ``indices [count]`` of a weight."""
        output = np.full((len(indices), weight.values.shape[1]), np.nan, np.float32)
        desc = QuantizedGatherDesc(len(indices), *weight.values.shape, weight.bits, weight.block_size)
        held = (indices, at_odd_address(weight.codes), weight.scales, weight.zero_points, output)
        pointers = map(address, held)
        self.check(self.library.q2export_cpu_quantized_gather(byref(desc), *pointers, None))
        return output

    def attention(self, step: Step) -> tuple[Floats, NDArray[np.generic], NDArray[np.generic]]:
        """Output, key cache and value cache after a step."""
        batch, sequence, heads, dim = step.query.shape
        kv_heads, capacity = step.key_cache.shape[1:3]
        key_cache, value_cache = step.key_cache.copy(), step.value_cache.copy()
        output = np.full_like(step.query, np.nan)
        sizes = (batch, sequence, capacity, heads, kv_heads, dim, step.sliding_window, step.cache_dtype)
        desc = AttentionDesc(*sizes, dim**-0.5, step.attention_factor)
        lengths = [np.array(each, np.int64) for each in (step.past_lengths, step.query_lengths)]
        new = [np.ascontiguousarray(each) for each in (step.query, step.key, step.value)]
        held = (*new, *lengths, step.inv_freq, key_cache, value_cache, output)
        self.check(self.library.q2export_cpu_attention(byref(desc), *map(address, held), None))
        return output, key_cache, value_cache

    def swiglu(self, gate: Floats, up: Floats) -> Floats:
        """``silu(gate) * up``."""
        output = np.full_like(gate, np.nan)
        pointers = map(address, (gate, up, output))
        self.check(self.library.q2export_cpu_swiglu(c_int64(gate.size), *pointers, None))
        return output

    def moe(
        self,
        hidden: Floats,
        logits: Floats,
        experts: Experts,
        top_k: int,
        norm: bool,
        activations: int = 0,
    ) -> Floats:
        """``hidden [tokens, hidden]`` through the experts that ``logits [tokens, experts]`` choose."""
        hidden, logits = np.ascontiguousarray(hidden), np.ascontiguousarray(logits)
        output = np.full_like(hidden, np.nan)
        inner, count = experts.gate[0].shape[0], len(experts.gate)
        desc = MoeDesc(*hidden.shape, inner, count, top_k, norm, experts.dtype, activations)
        of_matrix = (experts.gate, experts.up, experts.down)
        tables = [(c_void_p * count)(*(each.ctypes.data for each in matrix)) for matrix in of_matrix]
        held = map(address, (hidden, logits))
        self.check(self.library.q2export_cpu_moe(byref(desc), *held, *tables, address(output), None))
        return output

    def quantized_moe(
        self, hidden: Floats, logits: Floats, experts: PackedExperts, top_k: int, norm: bool, int8: bool
    ) -> Floats:
        """:meth:`moe` over packed experts, the activations rounded to int8 or not."""
        hidden, logits = np.ascontiguousarray(hidden), np.ascontiguousarray(logits)
        output = np.full_like(hidden, np.nan)
        gate_up, down = experts.gate_up, experts.down
        sizes = (*hidden.shape, down.values.shape[1], experts.count, top_k, norm)
        desc = QuantizedMoeDesc(*sizes, down.bits, down.block_size, int8)
        matrices = [
            each
            for packed in (gate_up, down)
            for each in (at_odd_address(packed.codes), packed.scales, packed.zero_points)
        ]
        held = [address(each) for each in (hidden, logits, *matrices, output)]
        self.check(self.library.q2export_cpu_quantized_moe(byref(desc), *held, None))
        return output

    def linear_into(self, output: Floats, x: Floats, weight: Floats, run: ctypes._FuncPointer) -> None:
        """:meth:`linear` of float32, its tasks given to ``run``."""
        desc = LinearDesc(*x.shape, weight.shape[0], FLOAT32, FLOAT32, 0)
        pool = ParallelFor(ctypes.cast(run, c_void_p), None)
        pointers = map(address, (x, weight, None, output))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, byref(pool)))

    def linear_without_rows(self, weight: Floats) -> None:
        """:meth:`linear` of nothing."""
        desc = LinearDesc(0, weight.shape[1], weight.shape[0], FLOAT32, FLOAT32, 0)
        self.check(self.library.q2export_cpu_linear(byref(desc), None, address(weight), None, None, None))

    def refused_linear(self, change: Mapping[str, int | None]) -> None:
        """:meth:`linear` of a few ones, but for one argument."""
        ones = np.ones(64, np.float32)
        fields: dict[str, int | None] = {"rows": 2, "in_features": 3, "out_features": 4, **change}
        weight = None if "weight" in fields else ones
        fields.pop("weight", None)
        desc = LinearDesc(**fields)
        pointers = map(address, (ones, weight, None, np.ones(64, np.float32)))
        self.check(self.library.q2export_cpu_linear(byref(desc), *pointers, None))
