"""Experts that tie: engines that choose otherwise pass, and wrong routers are found out all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch import Tensor

import q2export
from q2export.compare.verify.results import ParityReport
from q2export.compare.verify.router_ties import TIE, RouterTies
from q2export.compare.verify.summary import summary_lines
from q2export.exporter.graph.ops import moe
from tests.helpers.checkpoints import tiny_config, write_checkpoint

ROUTER = "model.layers.0.mlp.gate"
TOP_K = 2


def order(reference: list[float], engine: list[float], top_k: int = TOP_K) -> tuple[np.ndarray, int]:
    """Router logits of one token, after ties were put in the engine's order; and how many were."""
    ties = RouterTies([{ROUTER: np.array([engine], np.float32)}], top_k)
    return ties(ROUTER, 0, np.array([reference], np.float32))[0], ties.followed


def first(logits: np.ndarray, top_k: int = TOP_K) -> set[int]:
    return set(np.argsort(-logits, kind="stable")[:top_k].tolist())


def test_an_exact_tie_goes_to_the_engine() -> None:
    for chosen in (1, 2, 3):
        engine = [4.0, 1.0, 1.0, 1.0, 0.0]
        engine[chosen] += 1e-6
        found, followed = order([4.0, 1.0, 1.0, 1.0, 0.0], engine)
        assert first(found) == {0, chosen} and followed == 1
        assert np.abs(found - [4, 1, 1, 1, 0]).max() <= TIE * 4


def test_a_near_tie_goes_to_the_engine_and_a_difference_does_not() -> None:
    near, clear = 1 - 0.5 * TIE * 4, 1 - 2 * TIE * 4
    found, followed = order([4.0, 1.0, near, 0.0], [4.0, near, 1.0, 0.0])
    assert first(found) == {0, 2} and followed == 1
    found, followed = order([4.0, 1.0, clear, 0.0], [4.0, clear, 1.0, 0.0])
    assert found.tolist() == np.float32([4.0, 1.0, clear, 0.0]).tolist() and followed == 0


def test_an_engine_that_takes_an_expert_outside_the_tie_is_not_followed() -> None:
    found, followed = order([4.0, 1.0, 1.0, 0.0], [4.0, 0.0, 0.0, 3.0])
    assert found.tolist() == [4.0, 1.0, 1.0, 0.0] and followed == 0


def test_routers_of_zeros_and_all_experts_chosen() -> None:
    found, followed = order([0.0] * 4, [0.0, 0.0, 1e-7, 1e-7])
    assert first(found) == {2, 3} and followed == 1
    assert order([1.0, 1.0], [1.0, 2.0])[1] == 0


def checkpoint_of(folder: Path, router: str, damaged: str | None = None) -> Path:
    """A mixture of experts whose routers are zero, or know every expert twice; top 3 of 6."""
    config = tiny_config(model_type="qwen2_moe", head_dim=16, num_experts=6, num_experts_per_tok=3)
    write_checkpoint(folder, config)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("mlp.gate.weight"):
            weights[name] = np.zeros_like(weight) if router == "zero" else weight[[0, 1, 2, 0, 1, 2]]
    if damaged is not None:
        weights[damaged][3, 3] += 2.0
    save_file(weights, folder / "model.safetensors")
    return folder


def last_of_equals(router_logits: Tensor, top_k: int, norm_topk_prob: bool) -> tuple[Tensor, Tensor]:
    """As ``moe.route``, which leaves open which of equal experts are taken; ONNX Runtime takes the first."""
    backwards = router_logits.float().softmax(-1).flip(-1)
    weight, index = backwards.sort(dim=-1, descending=True, stable=True)
    return weight[:, :top_k], router_logits.shape[-1] - 1 - index[:, :top_k]


@pytest.mark.parametrize("router", ["zero", "twice"])
def test_models_full_of_ties_equal_pytorch_and_broken_ones_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, router: str
) -> None:
    monkeypatch.setattr(moe, "route", last_of_equals)
    model = checkpoint_of(tmp_path / "model", router)
    built = q2export.build(model, tmp_path / "package", overrides={"capacity.max": 40, "threads": 1})
    assert built.manifest.parity is not None and built.manifest.parity.passed
    report = q2export.verify(built.package, model, greedy_tokens=8)
    assert isinstance(report, ParityReport) and report.passed and report.router_ties > 0
    assert any("experts tie within rounding" in line for line in summary_lines(report))

    name = "model.layers.1.mlp.experts.0.down_proj.weight"
    other = q2export.verify(built.package, checkpoint_of(tmp_path / "other", router, name), greedy_tokens=8)
    assert isinstance(other, ParityReport) and not other.passed
    assert other.divergence is not None and other.divergence.activation.name == "model.layers.1.mlp"
