"""The configurations of the real models, where this machine has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs"
REAL_MODELS = (
    "Qwen2-0.5B",
    "Qwen2-1.5B",
    "Qwen2-7B",
    "Qwen2-72B",
    "Qwen2-72B-Instruct-yarn",
    "Qwen2-57B-A14B",
    "Qwen2-57B-A14B-Instruct-yarn",
    "Qwen1.5-MoE-A2.7B",
)


def real_config(name: str) -> dict[str, object]:
    """``config.json`` of a real model; skips the test where it is not at hand."""
    path = CONFIGS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {name}.json in the folder shared/configs beside the repository")
    config: dict[str, object] = json.loads(path.read_text())
    return config
