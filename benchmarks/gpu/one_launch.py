"""``python -m benchmarks.gpu.one_launch CASE``: a case of ``benchmarks.kernels`` launched for a profiler."""

from __future__ import annotations

import sys

import torch

from benchmarks.kernels.__main__ import make_workload
from benchmarks.kernels.case import load_cases
from q2export.plugins.tensorrt.torch_ops import register


def main(name: str) -> None:
    """Launch it."""
    (case,) = (each for each in load_cases() if each.name == name)
    register()
    workload = make_workload(case, torch.device("cuda"), 0)
    for launch in workload.subject[:2]:
        launch()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
