"""Settings of one run of the runner."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunSettings:
    """Where things are.

    Attributes:
        work_dir: checkpoints, packages and logs; large.
        q2export: the ``q2export`` command.
        python: interpreter that has q2export.
        peers_python: interpreter that has the peers.
        openvino_python: interpreter that has OpenVINO, whose exporter wants a transformers of its own.
    """

    work_dir: Path
    q2export: str
    python: str
    peers_python: str
    openvino_python: str

    def environment(self, threads: int) -> dict[str, str]:
        """Environment of the measured processes: ours, no network, and at most ``threads`` OpenMP threads."""
        fixed = {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        return {**os.environ, **fixed}
