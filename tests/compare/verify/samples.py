"""Real reports: a healthy engine, a wrong weight in layer 1, NaN from layer 1 on, and a deep model's last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from q2export.compare.verify.compare import compare
from q2export.compare.verify.results import ParityReport
from tests.compare.verify.tiny import INFO, PROMPTS, THRESHOLDS, TinyEngine, TinyModel, pair, perturb


def spoil(name: str, value: np.ndarray) -> np.ndarray:
    return (
        np.where(np.arange(len(value))[:, None] > 2, np.nan, value) if name == "model.layers.1.mlp" else value
    )


def _report(layers: int, change: Callable[[TinyModel], TinyModel]) -> ParityReport:
    reference, healthy = pair(layers)
    engine, text = TinyEngine(change(healthy)), [5, 6, 7, 8]
    return compare(reference, engine, PROMPTS, THRESHOLDS, info=INFO, n_greedy=6, text_tokens=text)


HEALTHY = _report(3, lambda model: model)
BROKEN = _report(3, lambda model: perturb(model, "model.layers.1.self_attn.o_proj", (3, 3), 3.0))
SPOILT = _report(3, lambda model: replace(model, tap=spoil))
DEEP = _report(80, lambda model: perturb(model, "model.layers.79.mlp.down_proj", (3, 3), 3.0))
