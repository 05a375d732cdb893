"""Nsight Compute on one launch of two cases: where the time of a kernel goes."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from typing import Any

from benchmarks.gpu.session import Session, StepFailed

CASES = ("decode-7b-b16-16k", "prefill-7b-8k")
METRICS = {
    "gpu__time_duration.sum": "time",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor pipe",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank conflicts",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps",
    "launch__registers_per_thread": "registers",
}
_SAMPLE = """==PROF== Connected
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","decode_kernel","gpu__time_duration.sum","us","123.4"
"0","decode_kernel","launch__registers_per_thread","register/thread","168"
"""


def run(session: Session) -> None:
    """The steps."""
    for case in CASES:
        session.step(case, _profiled, session, case)


def _profiled(session: Session, case: str) -> dict[str, Any]:
    program = shutil.which("ncu") or "/usr/local/cuda/bin/ncu"
    # The clocks are the machine's: ncu would fix them otherwise.
    options = ["--clock-control", "none", "--csv", "--metrics", ",".join(METRICS)]
    options += ["--kernel-name", "regex:attention|decode|prefill|append", "--launch-count", "4"]
    command = [program, *options, sys.executable, "-m", "benchmarks.gpu.one_launch", case]
    found = parse(session.tool(command, 85, lambda: _SAMPLE).checked("ncu"))
    if not found:
        raise StepFailed("ncu has profiled no kernel of that name")
    lines = [
        f"{kernel.split('(')[0][:60]}: " + ", ".join(f"{METRICS[m]} {v}" for m, v in each.items())
        for kernel, each in found.items()
    ]
    return {"kernels": found, "line": "; ".join(lines)}


def parse(text: str) -> dict[str, dict[str, str]]:
    """Metrics of each kernel, from ncu's CSV behind whatever the program has printed."""
    start = text.find('"ID",')
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO(text[start:] if start >= 0 else "")):
        if row.get("Metric Name") in METRICS:
            of_kernel = found.setdefault(row["Kernel Name"], {})
            of_kernel[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return found
