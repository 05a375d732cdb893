"""A token's logits have the same bits alone, in any batch, under any cut of its prompt, on any threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import q2export
from q2export.package.reader import read_package
from q2export.plugins.kernel_build import CPU_LIBRARY, CPU_RECORD, recorded
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from q2export.runtime.cpu import processors
from tests.helpers.checkpoints import CHECKPOINTS

pytestmark = pytest.mark.skipif(not CPU_LIBRARY.is_file(), reason=f"CPU kernels: {recorded(CPU_RECORD)}")

LENGTH = 70
CUTS = [[1] * LENGTH, [69, 1], [1, 69], [35, 35], [3, 7, 11, 20, 29]]
PROFILES = ["cpu", "cpu-bf16", "cpu-int8", "cpu-int4"]


@pytest.fixture(
    scope="module", params=[(model, name) for model in ("", "-moe") for name in PROFILES], ids=str
)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, profile = request.param
    checkpoint = CHECKPOINTS / f"qwen2{model}-tiny"
    folder = tmp_path_factory.mktemp("bits") / "package"
    return q2export.build(checkpoint, folder, profile=profile, parity=False).package


def backend(package: Path, threads: int) -> OnnxRuntimeBackend:
    opened = read_package(package)
    return OnnxRuntimeBackend(opened.folder, opened.manifest.engine, threads=threads)


def logits(engine: OnnxRuntimeBackend, row: Int64Array, cuts: list[int]) -> Float32Array:
    """Of every token of one sequence, fed in pieces."""
    cache, found, past = engine.new_cache(1, len(row)), [], 0
    for count in cuts:
        piece, wanted = row[None, past : past + count], np.arange(count)[None]
        found.append(engine.forward(cache, piece, np.array([past]), np.array([count]), wanted)[0].copy())
        past += count
    return np.concatenate(found)


def test_the_same_bits(package: Path) -> None:
    engine = backend(package, min(2, processors()))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, engine.vocab_size, length) for length in (LENGTH, 13, 40)]
    alone = [logits(engine, row, [len(row)]) for row in rows]
    assert np.abs(alone[0]).max() > 1
    for cuts in CUTS:
        np.testing.assert_array_equal(logits(engine, rows[0], cuts), alone[0], err_msg=str(cuts))
    np.testing.assert_array_equal(logits(backend(package, 1), rows[0], [LENGTH]), alone[0])
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), LENGTH), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    wanted = np.tile(np.arange(LENGTH), (len(rows), 1))
    together = engine.forward(engine.new_cache(3, LENGTH), ids, np.zeros_like(lengths), lengths, wanted)
    for index, expected in enumerate(alone):
        np.testing.assert_array_equal(together[index, : len(expected)], expected)
