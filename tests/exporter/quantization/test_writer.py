"""The writer: rows in any order, and nothing forgotten or written twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from q2export.contracts.quantization import PackedQuantization
from q2export.errors import ExportError
from q2export.exporter.checkpoint.pack import PackedRows
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.packed_layout import Layout, plan_layout
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.quantization.writer import PackedWriter
from tests.exporter.quantization.models import MOE, model_config, read_tensors

CONFIG = model_config(**MOE, vocab_size=128, num_hidden_layers=1)
LAYOUT: Layout = plan_layout(
    CONFIG,
    PackedQuantization(4, 32, False),
    dict.fromkeys(expected_parameters(CONFIG), "F32"),
)


def random_rows(weight: PackedWeight, rng: np.random.Generator) -> PackedRows:
    """All rows of one weight."""
    out = weight.shape[0]
    codes = rng.integers(0, 256, (out, weight.codes_shape[1])).astype(np.uint8)
    scales = rng.standard_normal((out, weight.blocks)).astype(np.float16)
    return PackedRows(codes, scales, rng.integers(0, 256, (out, weight.zero_point_shape[1])).astype(np.uint8))


def part(rows: PackedRows, where: slice) -> PackedRows:
    assert rows.zero_points is not None
    return PackedRows(rows.codes[where], rows.scales[where], rows.zero_points[where])


def units() -> list[list[PackedWeight]]:
    """Weights, those of one tensor together."""
    found: dict[str, list[PackedWeight]] = {}
    for group in LAYOUT.groups:
        for weight in group:
            found.setdefault(weight.tensor, []).append(weight)
    return list(found.values())


def write_plain(writer: PackedWriter) -> None:
    for name in LAYOUT.plain:
        writer.write_plain(name, 0, np.ones(LAYOUT.tensors[name].shape, np.float32))


def test_rows_arrive_where_they_belong_in_whatever_order_they_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = {weight.name: random_rows(weight, rng) for unit in units() for weight in unit}
    pieces = []
    for unit in units():
        cut = int(rng.integers(1, unit[0].shape[0]))
        pieces += [(unit, slice(0, cut)), (unit, slice(cut, unit[0].shape[0]))]
    with PackedWriter(tmp_path / "file", LAYOUT) as writer:
        write_plain(writer)
        for index in rng.permutation(len(pieces)):
            unit, where = pieces[index]
            writer.write_rows(unit, where.start, [part(written[weight.name], where) for weight in unit])
    tensors = read_tensors(tmp_path / "file")
    for unit in units():
        for weight in unit:
            rows, expected = slice(weight.first_row, None, weight.row_step), written[weight.name]
            assert np.array_equal(tensors[weight.tensor][rows], expected.codes)
            assert np.array_equal(tensors[weight.scale_name][rows], expected.scales)
            assert np.array_equal(tensors[weight.zero_point_name or ""][rows], expected.zero_points)
    assert all((tensors[name] == 1).all() for name in LAYOUT.plain)


def test_what_is_missing_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"'model\.embed_tokens\.weight': 4096 bytes are missing"),
        PackedWriter(tmp_path / "file", LAYOUT) as writer,
    ):
        write_plain(writer)


def test_what_is_written_twice_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ExportError, match=r"first 'model\.norm\.weight': -256 bytes are missing"),
        PackedWriter(tmp_path / "file", LAYOUT) as writer,
    ):
        for unit in units():
            writer.write_rows(unit, 0, [random_rows(weight, np.random.default_rng(0)) for weight in unit])
        write_plain(writer)
        writer.write_plain("model.norm.weight", 0, np.ones(64, np.float32))


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    embedding, gate_up = units()[0], next(unit for unit in units() if len(unit) == 2)
    rows = random_rows(embedding[0], np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="enough"), PackedWriter(tmp_path / "file", LAYOUT) as writer:
        with pytest.raises(ExportError, match="expected packed codes, scales and zero points"):
            writer.write_rows(embedding, 0, [PackedRows(rows.codes[:, :-1], rows.scales, rows.zero_points)])
        with pytest.raises(ExportError, match="expected packed codes, scales and zero points"):
            writer.write_rows(embedding, 0, [PackedRows(rows.codes, rows.scales, None)])
        with pytest.raises(ExportError, match="bytes 32 to 4128 were to be written, the tensor has 4096"):
            writer.write_rows(embedding, 1, [rows])
        with pytest.raises(ExportError, match=r"gate_up_proj.*alternate between 2 weights"):
            writer.write_rows(gate_up[:1], 0, [random_rows(gate_up[0], np.random.default_rng(0))])
        with pytest.raises(ExportError, match="alternate between 2 weights"):
            writer.write_rows(
                gate_up[::-1], 0, [random_rows(one, np.random.default_rng(0)) for one in gate_up]
            )
        raise RuntimeError("enough")  # leaves the block without the check that all was written


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        PackedWriter(tmp_path / "file", LAYOUT)
    assert (tmp_path / "file").read_bytes() == b"mine"
