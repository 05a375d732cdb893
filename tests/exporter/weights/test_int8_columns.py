"""Int8 copies of quantized weights: rounding, scales, order, and what is not in memory twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from q2export.contracts.quantization import Quantization
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.source import load_source
from q2export.exporter.quantization.folder import quantize_checkpoint
from q2export.exporter.weights.bind import Binding
from q2export.exporter.weights.int8_columns import Int8Columns
from q2export.exporter.weights.stack import Form
from tests.exporter.quantization.models import blocks_config
from tests.helpers.checkpoints import write_checkpoint


@pytest.mark.parametrize(
    "quantization", [Quantization("int4"), Quantization("int8", symmetric=False)], ids=str
)
def test_codes_times_scales_are_the_dequantized_weights(tmp_path: Path, quantization: Quantization) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", blocks_config())
    quantize_checkpoint(load_source(checkpoint), tmp_path / "quantized", quantization)
    source = load_source(tmp_path / "quantized")
    path = "model.layers.1.self_attn"
    weights = tuple(source.packed[f"{path}.{name}_proj.weight"] for name in "qkv")
    rows, columns = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    made = Int8Columns(source.checkpoint)

    def data(form: Form) -> bytes:
        refs = (source.checkpoint.tensors[weights[0].tensor],)
        binding = Binding("x", refs, (columns, rows), "U8", rows * columns, form, 0, weights)
        return b"".join(block.tobytes() for block in made.blocks(binding))

    scales = np.frombuffer(data(Form.INT8_COLUMN_SCALES), np.float32)
    codes = np.frombuffer(data(Form.INT8_COLUMNS), np.int8).reshape(columns, rows)
    assert np.array_equal(scales, np.frombuffer(data(Form.INT8_COLUMN_SCALES), np.float32))
    values = ParameterValues(source.checkpoint, source.packed)
    expected = np.concatenate([values.read(weight.name) for weight in weights])
    assert np.abs(codes.astype(np.int16)).max(axis=0).tolist() == [127] * rows
    assert scales == pytest.approx(np.abs(expected).max(axis=1) / 127)
    assert np.all(np.abs(codes.T * scales[:, None] - expected) <= scales[:, None] * 0.5001)
