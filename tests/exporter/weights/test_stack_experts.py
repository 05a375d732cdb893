"""Experts written stacked for ``com.microsoft.MoE``: the bytes of the file, and what the engine computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from q2export import api
from q2export.errors import CheckpointError
from q2export.exporter.export import Graph, build_graph, load_source
from q2export.exporter.weights.convert import write_converted
from tests.helpers.checkpoints import random_weights, tiny_config, write_checkpoint

EXPERTS, INNER, HIDDEN = 5, 24, 48


def moe_config(norm_topk_prob: bool = False) -> dict[str, object]:
    return tiny_config(
        model_type="qwen2_moe",
        hidden_size=HIDDEN,
        num_attention_heads=3,
        num_key_value_heads=1,
        num_hidden_layers=2,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=INNER,
        shared_expert_intermediate_size=40,
        norm_topk_prob=norm_topk_prob,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )


def lowered(folder: Path) -> Graph:
    return build_graph(load_source(folder), "onnxruntime", "float32", 32)


def test_layout_of_the_file(tmp_path: Path) -> None:
    config = moe_config()
    graph = lowered(write_checkpoint(tmp_path / "model", config, dtype="F16", shards=2))
    assert ("StackExperts", 2) in [(name, count) for name, count, _ in graph.passes]
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as sink:
        write_converted(graph.plan, sink, scan=True)
    written = load_file(path)
    weights = {
        name: value.astype(np.float16).astype(np.float32) for name, value in random_weights(config).items()
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate_up, down = written[f"{prefix}.gate_up_proj"], written[f"{prefix}.down_proj"]
        assert gate_up.shape == (EXPERTS, 2 * INNER, HIDDEN)
        assert down.shape == (EXPERTS, HIDDEN, INNER)
        for expert in range(EXPERTS):
            single = f"{prefix}.{EXPERTS - 1 - expert}"  # in reverse
            np.testing.assert_array_equal(gate_up[expert, 0::2], weights[f"{single}.gate_proj.weight"])
            np.testing.assert_array_equal(gate_up[expert, 1::2], weights[f"{single}.up_proj.weight"])
            np.testing.assert_array_equal(down[expert], weights[f"{single}.down_proj.weight"])
    assert not any(".experts.0." in name for name in written), "an expert is there twice"


def test_rows_alternate_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = lowered(write_checkpoint(tmp_path / "model", moe_config(), dtype="BF16"))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    with whole.open("wb") as sink:
        write_converted(graph.plan, sink, scan=True)
    # Seven rows of 48 float32 in half a block: 24 rows do not divide evenly.
    monkeypatch.setattr("q2export.exporter.weights.convert._BLOCK_BYTES", 2 * 7 * HIDDEN * 4)
    with pieces.open("wb") as sink:
        write_converted(graph.plan, sink, scan=True)
    assert whole.read_bytes() == pieces.read_bytes()


@pytest.mark.parametrize(("norm_topk_prob", "ties"), [(False, False), (True, False), (False, True)])
def test_engine_equals_pytorch(tmp_path: Path, norm_topk_prob: bool, ties: bool) -> None:
    """Also where the router gives all experts equal logits."""
    model = write_checkpoint(tmp_path / "model", moe_config(norm_topk_prob), dtype="F16")
    if ties:
        tensors = load_file(model / "model.safetensors")
        for name in [name for name in tensors if name.endswith("mlp.gate.weight")]:
            tensors[name][:] = 0
        save_file(tensors, model / "model.safetensors")
    result = api.build(model, tmp_path / "package", parity=False)
    report = api.verify(result.package, model, greedy_tokens=16)
    assert report.passed, report.failures
    assert report.total is not None and report.total.max_abs_error < 1e-4


def test_experts_of_an_fp32_checkpoint_stay_where_they_are(tmp_path: Path) -> None:
    graph = lowered(write_checkpoint(tmp_path / "model", moe_config(), dtype="F32"))
    assert "StackExperts" not in [name for name, _, _ in graph.passes]
    assert graph.plan.converted == ()


def test_scan_names_the_expert(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", moe_config(), dtype="BF16")
    graph = lowered(model)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    ref = graph.plan.checkpoint.tensors[name]
    with ref.file.open("r+b") as file:
        file.seek(ref.offset + 2 * (5 * HIDDEN + 7))
        file.write(b"\x80\x7f")
    with pytest.raises(CheckpointError, match=r"experts\.3\.up_proj\.weight'?\[5, 7\]"):
        api.build(model, tmp_path / "package")
