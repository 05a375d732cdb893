"""The cases of ``benchmarks.kernels``, one step each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.gpu.host import host_kernels
from benchmarks.gpu.session import Session, StepFailed
from benchmarks.gpu.stages.probe import ceilings

SMALL: dict[str, dict[str, int]] = {
    "AttentionShape": {
        "batch": 2,
        "past": 3,
        "query": 17,
        "num_heads": 2,
        "num_kv_heads": 1,
        "other_past": 1,
    },
    "MoeShape": {"tokens": 3, "hidden_size": 128, "intermediate_size": 128, "num_experts": 5, "top_k": 2},
}
"""Sizes of a dry run."""


def run(session: Session) -> None:
    """The steps."""
    from benchmarks.kernels.case import load_cases

    cases = [case for case in load_cases() if case.kind != "decoder"]
    if session.dry:
        cases = list({case.kind: case for case in cases}.values())  # one of each kind
    with host_kernels(session.dry):
        for case in cases:
            session.step(case.name, measured, session, case)


def measured(session: Session, case: Any, rounds: int = 20) -> dict[str, Any]:
    """One case.

    Raises:
        StepFailed: it is wrong, or could not run.
    """
    import torch

    from benchmarks.kernels.__main__ import Bench, measure
    from q2export.plugins.tensorrt.torch_ops import register

    l2_bytes = 0
    if session.dry:
        case, rounds = replace(case, shape=replace(case.shape, **SMALL[type(case.shape).__name__])), 1
    else:
        register()
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    record = measure(case, Bench(session.device, ceilings(session), l2_bytes, rounds))
    if record["error"]:
        raise StepFailed(record["error"], record)
    return {**record, "line": _line(record)}


def _line(record: dict[str, Any]) -> str:
    ours, parts = record["figures"]["q2export"], [f"{record['times']['q2export']['median_us']:.1f} us"]
    parts.append(f"{ours['copy_bandwidth']:.0%} of copy, {ours['matrix_peak']:.0%} of peak")
    parts += [
        f"{each['speedup']:.2f}x of {name}" for name, each in record["figures"].items() if name != "q2export"
    ]
    parts += [f"**misses {bar['bar']}**" for bar in record["bars"] if bar["met"] is False]
    return ", ".join(parts)
