"""``python -m benchmarks.gpu.one_launch CASE``: an attention case, for a profiler."""

from __future__ import annotations

import sys

import torch

from benchmarks.kernels.attention import attention_workload
from benchmarks.kernels.case import load_cases
from q2export.plugins.tensorrt.torch_ops import register


def main(name: str) -> None:
    """Launch it."""
    (case,) = (each for each in load_cases() if each.name == name)
    register()
    workload = attention_workload(case, torch.device("cuda"), 2, with_peers=False)
    for launch in workload.subject:
        launch()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
