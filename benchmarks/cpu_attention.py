"""``python -m benchmarks.cpu_attention``: Q2RotaryAttention and ONNX Runtime's GroupQueryAttention.

Each contestant is a session of one node on 14 query heads, 2 KV heads and a head_dim of 64, in float32, whose
caches are updated in place; ONNX Runtime gets its tables of cosines and sines ready-made. Results are checked
against each other first. Clocks and ratios are those of :mod:`benchmarks.cpu_kernels`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.cpu_kernels import OURS, timed
from benchmarks.measure import Turn, interleave, paired_speedup, summarize
from q2export.plugins.kernel_build import CPU_LIBRARY

HEADS, KV_HEADS, HEAD_DIM = 14, 2, 64
PEER = "GroupQueryAttention"

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """``batch`` rows of ``new`` tokens each, on ``past`` tokens."""

    name: str
    batch: int
    new: int
    past: int

    @property
    def flops(self) -> int:
        """Of both products, without what is masked."""
        keys = sum(self.past + token + 1 for token in range(self.new))
        return 4 * self.batch * HEADS * HEAD_DIM * keys


CASES = (
    Case("prefill 256", 1, 256, 0),
    Case("prefill 512", 1, 512, 0),
    Case("prefill 256 on 256", 1, 256, 256),
    Case("prefill 256 on 8192", 1, 256, 8192),
    Case("decode on 512", 1, 1, 512),
    Case("decode on 2048", 1, 1, 2048),
    Case("decode on 8192", 1, 1, 8192),
    Case("decode, 8 rows on 512", 8, 1, 512),
)


def bound_session(
    node: onnx.NodeProto, inputs: Mapping[str, Array], outputs: Mapping[str, Array], threads: int
) -> tuple[Any, Any]:
    """A session of one node, and a binding of its inputs and outputs to arrays."""
    import onnxruntime

    ends = [
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
            for name, each in arrays.items()
        ]
        for arrays in (inputs, outputs)
    ]
    constants = [
        numpy_helper.from_array(inputs[name], name) for name in ("cosines", "sines") if name in inputs
    ]
    held = {each.name for each in constants}
    ends[0] = [each for each in ends[0] if each.name not in held]
    graph = helper.make_graph([node], "attention", *ends, constants)
    versions = [helper.make_opsetid(*each) for each in (("", 21), ("q2export", 1), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(CPU_LIBRARY))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    binding = session.io_binding()
    for bind, arrays in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, each in arrays.items():
            if name not in held:
                bind(name, "cpu", 0, each.dtype, each.shape, each.ctypes.data)
    return session, binding


def contestants(case: Case, threads: int) -> tuple[dict[str, tuple[Any, Any]], list[dict[str, Array]]]:
    """Sessions with bindings, and the arrays that are bound, which must outlive them."""
    rng = np.random.default_rng(0)
    capacity = case.past + case.new
    heads = (HEADS, KV_HEADS, KV_HEADS)
    new = [rng.standard_normal((case.batch, case.new, each, HEAD_DIM), np.float32) for each in heads]
    cache = [rng.standard_normal((case.batch, KV_HEADS, capacity, HEAD_DIM), np.float32) for _ in range(2)]
    inv_freq = (10000.0 ** (-np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)).astype(np.float32)
    angles = np.arange(capacity, dtype=np.float32)[:, None] * inv_freq

    def arrays(flat: bool, **rest: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        own = [each.reshape(*each.shape[:2], -1) if flat else each for each in new]
        caches = [each.copy() for each in cache]
        inputs = dict(zip(("query", "key", "value", "past_key", "past_value"), (*own, *caches), strict=True))
        outputs = {"output": np.empty_like(own[0]), "present_key": caches[0], "present_value": caches[1]}
        return {**inputs, **rest}, outputs

    lengths = [np.full(case.batch, each, np.int64) for each in (case.past, case.new)]
    own = arrays(False, past_lengths=lengths[0], query_lengths=lengths[1], inv_freq=inv_freq)
    last = np.full(case.batch, capacity - 1, np.int32)
    total = np.array(capacity, np.int32)
    peer = arrays(True, last=last, total=total, cosines=np.cos(angles), sines=np.sin(angles))
    own_node = helper.make_node(
        "Q2RotaryAttention",
        list(own[0]),
        list(own[1]),
        domain="q2export",
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        scale=HEAD_DIM**-0.5,
        sliding_window=0,
        attention_factor=1.0,
    )
    peer_node = helper.make_node(
        PEER,
        list(peer[0]),
        list(peer[1]),
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    return {
        OURS: bound_session(own_node, *own, threads),
        PEER: bound_session(peer_node, *peer, threads),
    }, [{**own[0], **own[1]}, {**peer[0], **peer[1]}]


def measure(case: Case, threads: int, rounds: int) -> str:
    """Check and time one case; a line of text."""
    sessions, held = contestants(case, threads)
    for session, binding in sessions.values():
        session.run_with_iobinding(binding)
    found, wanted = (each["output"].reshape(-1) for each in held)
    error = float(np.abs(found - wanted).max())
    if not error <= 1e-4:
        raise SystemExit(f"error: {case.name}: results differ by {error:.2g}")
    clock = thread_time if threads == 1 else perf_counter
    repeats = max(2, 200_000_000 // case.flops)
    turns: dict[str, Turn] = {
        name: partial(timed, partial(session.run_with_iobinding, binding), repeats, clock)
        for name, (session, binding) in sessions.items()
    }
    samples = interleave(turns, rounds, pause=0.05)
    own, peer = (summarize(samples[name]).as_dict()["median"] for name in (OURS, PEER))
    ratio = paired_speedup(samples[OURS], samples[PEER])
    speed = case.flops / own / 1e9
    times = f"{OURS} {own * 1e3:.3f} ms ({speed:.0f} GFLOP/s), {PEER} {peer * 1e3:.3f} ms"
    return f"{case.name}: {times}; {ratio:.2f}x"


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases, or those whose names contain a word."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_attention", description=__doc__)
    parser.add_argument("cases", nargs="*", help="Parts of the names of cases.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of every contestant.")
    parser.add_argument("--rounds", type=int, default=9, help="Turns of each contestant.")
    arguments = parser.parse_args(argv)
    for case in CASES:
        if not arguments.cases or any(each in case.name for each in arguments.cases):
            print(measure(case, arguments.threads, arguments.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
