"""``python -m benchmarks.cpu_kernels``: the CPU kernels, a plain read, and ONNX Runtime's operators.

Every contestant is a session of one node over random weights too large for the caches, run in turn with the
others. Results are checked against each other first; ratios are medians of the ratios within the rounds. With
one thread the clock is that of the thread, so that other processes of a busy machine count less; with more it
is the wall's, which says something on an idle machine alone.
"""

from __future__ import annotations

import argparse
import json
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.machine import commit, describe_machine, library_versions
from benchmarks.measure import Turn, interleave, paired_speedup, summarize
from q2export.plugins.kernel_build import CPU_LIBRARY

REPOSITORY = Path(__file__).resolve().parents[1]
OURS, READ = "q2export", "read"

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Sizes of one linear layer; ``bits`` 16 is bfloat16, else packed in blocks of 32.

    ``rounded``: the input is rounded to bfloat16, too.
    With ``experts``, of a mixture of them of which each row goes to four: ``out_features`` is then the size
    between gate, up and down.
    """

    name: str
    rows: int
    in_features: int
    out_features: int
    bits: int
    rounded: bool = False
    experts: int = 0


CASES = (
    Case("bf16, 1 row", 1, 896, 110_000, 16),
    Case("bf16, 1 row, wide", 1, 4864, 20_000, 16),
    Case("bf16, 8 rows", 8, 896, 110_000, 16),
    Case("bf16, 512 rows", 512, 896, 4864, 16),
    Case("bf16, 512 rows, wide", 512, 4864, 896, 16),
    Case("bf16 times bf16, 8 rows", 8, 896, 110_000, 16, rounded=True),
    Case("bf16 times bf16, 512 rows", 512, 896, 4864, 16, rounded=True),
    Case("int4, 1 row", 1, 896, 220_000, 4),
    *(Case(f"int4, {rows} rows", rows, 896, 110_000, 4) for rows in (2, 4, 8, 16)),
    Case("int4, 512 rows", 512, 896, 4864, 4),
    Case("int8, 1 row", 1, 896, 110_000, 8),
    *(Case(f"int8, {rows} rows", rows, 896, 110_000, 8) for rows in (2, 4, 8, 16)),
    Case("int8, 512 rows", 512, 896, 4864, 8),
    Case("int4 experts, 512 rows", 512, 512, 352, 4, experts=60),
    Case("bf16 times bf16 experts, 512 rows", 512, 512, 352, 16, rounded=True, experts=60),
)


def session(node: onnx.NodeProto, tensors: Mapping[str, tuple[Array, int]], threads: int) -> Any:
    """A session of one node whose input is ``x`` and whose output is ``y``."""
    import onnxruntime

    values = [
        TensorProto(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
        for name, (array, kind) in tensors.items()
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "layer", ends[:1], ends[1:], values)
    versions = [helper.make_opsetid(*each) for each in (("", 21), ("q2export", 1), ("com.microsoft", 1))]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(CPU_LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def dense(case: Case, threads: int) -> tuple[dict[str, Any], Array]:
    """Sessions of the kernel and of ``Gemm`` in float32, and the bytes that the kernel reads."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((case.out_features, case.in_features), np.float32) / 32
    stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    wide = (stored.astype(np.uint32) << 16).view(np.float32)
    own = helper.make_node(
        "Q2Linear", ["x", "w"], ["y"], domain="q2export", bfloat16_activations=int(case.rounded)
    )
    gemm = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    return {
        OURS: session(own, {"w": (stored, TensorProto.BFLOAT16)}, threads),
        "Gemm fp32": session(gemm, {"w": (wide, TensorProto.FLOAT)}, threads),
    }, stored


def quantized(case: Case, threads: int) -> tuple[dict[str, Any], Array]:
    """Sessions of the kernel and of ``MatMulNBits``, and the codes."""
    rng = np.random.default_rng(0)
    blocks = case.in_features // 32
    codes = rng.integers(0, 256, (case.out_features, case.in_features * case.bits // 8), np.uint8)
    scales = (rng.standard_normal((case.out_features, blocks), np.float32) / 2**case.bits).astype(np.float16)
    own = helper.make_node(
        "Q2QuantizedLinear",
        ["x", "w", "s"],
        ["y"],
        domain="q2export",
        bits=case.bits,
        block_size=32,
        int8_activations=1,
    )
    peer = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=case.in_features,
        N=case.out_features,
        bits=case.bits,
        block_size=32,
        accuracy_level=4,
    )
    as_blocks = codes.reshape(case.out_features, blocks, -1)
    return {
        OURS: session(own, {"w": (codes, TensorProto.UINT8), "s": (scales, TensorProto.FLOAT16)}, threads),
        "MatMulNBits": session(
            peer,
            {"w": (as_blocks, TensorProto.UINT8), "s": (scales.astype(np.float32), TensorProto.FLOAT)},
            threads,
        ),
    }, np.concatenate([codes.reshape(-1), scales.reshape(-1).view(np.uint8)])


def mixture(case: Case, threads: int) -> tuple[dict[str, Any], Array]:
    """Sessions of the kernel and of the exact one over the same experts in bfloat16, and the bytes it reads.

    The kernel is that of packed experts, or the one that rounds activations to bfloat16.
    """
    rng = np.random.default_rng(0)
    names: dict[str, tuple[Array, int]] = {
        "router_logits": (rng.standard_normal((case.rows, case.experts), np.float32), TensorProto.FLOAT)
    }
    wide: dict[str, tuple[Array, int]] = dict(names)
    shapes = {
        "gate_up": (2 * case.out_features, case.in_features),
        "down": (case.in_features, case.out_features),
    }
    values = {}
    for name, (rows, columns) in shapes.items():
        bits = min(case.bits, 8)
        codes = rng.integers(0, 2**bits, (case.experts, rows, columns), np.uint8)
        scales = np.full((case.experts, rows, columns // 32), 2.0**-bits / columns**0.5, np.float16)
        values[name] = (codes.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, :1]
        packed = codes if bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
        names |= {name: (packed, TensorProto.UINT8), f"{name}_scale": (scales, TensorProto.FLOAT16)}
    for expert in range(case.experts):
        gate_up = values["gate_up"][expert]
        for name, each in (("gate", gate_up[::2]), ("up", gate_up[1::2]), ("down", values["down"][expert])):
            stored = (np.ascontiguousarray(each).view(np.uint32) >> 16).astype(np.uint16)
            wide[f"{name}_{expert}"] = (stored, TensorProto.BFLOAT16)
    common: dict[str, Any] = {"num_experts": case.experts, "top_k": 4, "norm_topk_prob": 0}
    peer = helper.make_node("Q2MoE", ["x", *wide], ["y"], domain="q2export", **common)
    exact = session(peer, wide, threads)
    if case.bits == 16:
        own = helper.make_node(
            "Q2MoE", ["x", *wide], ["y"], domain="q2export", **common, bfloat16_activations=1
        )
        held = [array.reshape(-1).view(np.uint8) for array, _ in wide.values()]
        return {OURS: session(own, wide, threads), "Q2MoE bf16": exact}, np.concatenate(held)
    packing: dict[str, Any] = {"bits": case.bits, "block_size": 32, "int8_activations": 1}
    own = helper.make_node("Q2QuantizedMoE", ["x", *names], ["y"], domain="q2export", **common, **packing)
    held = [array.reshape(-1).view(np.uint8) for array, _ in names.values()]
    return {OURS: session(own, names, threads), "Q2MoE bf16": exact}, np.concatenate(held)


def timed(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for _ in range(repeats):
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds


def read(pool: ThreadPoolExecutor, parts: Sequence[Array]) -> None:
    """Read every byte once; one part here, the others on threads."""
    others = [pool.submit(np.bitwise_or.reduce, each) for each in parts[1:]]
    np.bitwise_or.reduce(parts[0])
    for each in others:
        each.result()


def measure(case: Case, threads: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Check and time one case."""
    make = mixture if case.experts else dense if case.bits == 16 else quantized
    sessions, held = make(case, threads)
    x = np.random.default_rng(1).standard_normal((case.rows, case.in_features), np.float32)
    outputs = {name: each.run(None, {"x": x})[0] for name, each in sessions.items()}
    own, peer = outputs.values()
    error = float(np.abs(own - peer).max() / np.abs(peer).max())
    bound = 0.05  # the peer rounds activations, too, but not alike
    if case.bits == 16:
        bound = 0.01 if case.rounded else 1e-5
    if error > bound:
        raise SystemExit(f"error: {case.name}: results differ by {error:.2g} of the largest")
    # In pages of 4 KB, as a mapped file and ONNX Runtime's copies are; numpy asks for larger ones.
    whole = np.frombuffer(mmap.mmap(-1, held.nbytes), np.uint8)
    whole[:] = held.reshape(-1).view(np.uint8)
    words = whole[: whole.size // (8 * threads) * 8 * threads].view(np.uint64)
    clock = thread_time if threads == 1 else perf_counter
    with ThreadPoolExecutor(threads) as pool:
        turns: dict[str, Turn] = {
            name: partial(timed, partial(each.run, None, {"x": x}), repeats, clock)
            for name, each in sessions.items()
        }
        turns[READ] = partial(timed, partial(read, pool, np.split(words, threads)), repeats, clock)
        samples = interleave(turns, rounds, pause=0.05)
    ratios = {
        name: round(paired_speedup(samples[OURS], each), 3) for name, each in samples.items() if name != OURS
    }
    summaries = {name: summarize(each).as_dict() for name, each in samples.items()}
    flops = 2 * case.rows * case.in_features * case.out_features * (12 if case.experts else 1)
    return {
        "case": case.name,
        "bytes": whole.size,
        "flops": flops,
        "error": error,
        "seconds": summaries,
        "times_faster_than": ratios,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases, or those whose names contain a word."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_kernels", description=__doc__)
    parser.add_argument("cases", nargs="*", help="Parts of the names of cases.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of every contestant.")
    parser.add_argument("--rounds", type=int, default=9, help="Turns of each contestant.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs per turn.")
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    arguments = parser.parse_args(argv)
    chosen = [
        case for case in CASES if not arguments.cases or any(each in case.name for each in arguments.cases)
    ]
    records = []
    for case in chosen:
        record = measure(case, arguments.threads, arguments.rounds, arguments.repeats)
        records.append(record)
        times = ", ".join(f"{name} {each['median'] * 1e3:.2f} ms" for name, each in record["seconds"].items())
        ratios = ", ".join(f"{ratio:.2f}x {name}" for name, ratio in record["times_faster_than"].items())
        print(f"{case.name}: {times}; {ratios}", flush=True)
    if arguments.output is not None:
        settings = {"threads": arguments.threads, "rounds": arguments.rounds, "repeats": arguments.repeats}
        result = {
            "machine": describe_machine(),
            "libraries": library_versions(),
            "commit": commit(REPOSITORY),
            "settings": settings,
            "cases": records,
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
