"""The ONNX Runtime backend: a cache updated in place, ragged and chunked steps, mapped weights, refusals."""

from __future__ import annotations

import dataclasses
import json
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import q2export
from q2export.errors import GenerationError, PackageError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeCache
from tests.helpers.checkpoints import tiny_config, write_checkpoint, write_sparse_checkpoint

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

VOCAB, LAYERS, BOUND = 131, 2, 2e-5
CONFIGS: dict[str, dict[str, object]] = {
    "dense": {"head_dim": 16},
    "moe": {"head_dim": 16, "model_type": "qwen2_moe"},
    "window": {
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
}


@dataclasses.dataclass(frozen=True)
class Package:
    folder: Path
    engine: EngineInfo

    def backend(self) -> OnnxRuntimeBackend:
        return OnnxRuntimeBackend(self.folder, self.engine, threads=1)


@pytest.fixture(scope="module", params=CONFIGS)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder: Path = tmp_path_factory.mktemp(request.param)
    checkpoint = write_checkpoint(folder / "checkpoint", tiny_config(**CONFIGS[request.param]))
    overrides = {"batch.max": 4, "capacity.max": 40, "prefill_chunk": 8}
    result = q2export.build(checkpoint, folder / "package", parity=False, overrides=overrides)
    return Package(result.package, result.manifest.engine)


@pytest.fixture(scope="module")
def backend(package: Package) -> OnnxRuntimeBackend:
    return package.backend()


def tokens(count: int, seed: int = 0) -> Int64Array:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def forward(
    backend: OnnxRuntimeBackend, cache: OnnxRuntimeCache, rows: list[Int64Array], past: list[int]
) -> list[Float32Array]:
    """One step that appends ``rows[b]`` to row ``b``: all logits, ``[len(rows[b]), vocab]`` per row."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    wanted = np.tile(np.arange(lengths.max()), (len(rows), 1))
    logits = backend.forward(cache, ids, np.array(past), lengths, wanted)
    assert logits.dtype == np.float32
    assert logits.shape == (*wanted.shape, VOCAB)
    assert np.isfinite(logits).all()
    return [logits[index, :length].copy() for index, length in enumerate(lengths)]


def alone(backend: OnnxRuntimeBackend, row: Int64Array) -> Float32Array:
    """The reference: one sequence in one step, in a cache of its own."""
    return forward(backend, backend.new_cache(1, len(row)), [row], [0])[0]


def test_properties(backend: OnnxRuntimeBackend) -> None:
    assert backend.vocab_size == VOCAB
    assert (backend.max_batch, backend.max_capacity, backend.prefill_chunk) == (4, 40, 8)
    cache = backend.new_cache(3, 17)
    assert (cache.batch, cache.capacity) == (3, 17)


def test_cache_is_updated_in_place(backend: OnnxRuntimeBackend) -> None:
    """Outputs are bound to the addresses of the inputs; nothing beyond the tokens of the step is written."""
    cache = backend.new_cache(2, 13)
    address = cache.data.ctypes.data
    forward(backend, cache, [tokens(6), tokens(3)], [0, 0])
    forward(backend, cache, [tokens(1), tokens(1)], [6, 3])
    assert cache.data.ctypes.data == address
    bound = {value.data_ptr() - address for value in cache.bindings[0, 2].get_outputs()}
    assert {index * cache.data[0, 0].nbytes for index in range(2 * LAYERS)} <= bound
    written = np.abs(cache.data).max(axis=(0, 1, 3, 5)) > 0  # [rows, capacity]
    assert written.tolist() == [[position < tokens for position in range(13)] for tokens in (7, 4)]


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [3, 1, 5, 1, 2], [11, 1], [1, 11]], ids=str)
def test_chunks_do_not_matter(backend: OnnxRuntimeBackend, chunks: list[int]) -> None:
    row = tokens(12)
    cache, logits, past = backend.new_cache(1, 16), [], 0
    for length in chunks:
        logits += forward(backend, cache, [row[past : past + length]], [past])
        past += length
    assert np.abs(np.concatenate(logits) - alone(backend, row)).max() <= BOUND


def test_ragged_steps_are_those_of_single_rows(backend: OnnxRuntimeBackend) -> None:
    """From empty, several tokens on a past, one token each, and a mixture."""
    rows = [tokens(20, 1), tokens(14, 2), tokens(9, 3)]
    cache = backend.new_cache(3, 20)
    past = [0, 0, 0]
    for step in ((10, 2, 1), (3, 5, 1), (1, 1, 1), (6, 6, 6)):
        parts = [row[start : start + length] for row, start, length in zip(rows, past, step, strict=True)]
        for row, start, logits in zip(rows, past, forward(backend, cache, parts, past), strict=True):
            expected = alone(backend, row)[start : start + len(logits)]
            assert np.abs(logits - expected).max() <= BOUND
        past = [start + length for start, length in zip(past, step, strict=True)]
    assert past == [20, 14, 9]


def test_first_rows_alone(backend: OnnxRuntimeBackend) -> None:
    """A step may leave the last rows out: they stay as they are, bit for bit."""
    cache = backend.new_cache(3, 12)
    rows = [tokens(7, 1), tokens(5, 2), tokens(6, 3)]
    forward(backend, cache, rows, [0, 0, 0])
    last = cache.data[:, :, 2].copy()
    (logits,) = forward(backend, cache, [tokens(2, 4)], [7])
    assert np.abs(logits - alone(backend, np.concatenate((rows[0], tokens(2, 4))))[7:]).max() <= BOUND
    forward(backend, cache, [tokens(1, 5), tokens(1, 6)], [9, 5])
    assert np.array_equal(cache.data[:, :, 2], last)


def test_copy_row(backend: OnnxRuntimeBackend) -> None:
    """The last row goes on in the place of one that has ended, whatever that one left behind."""
    cache = backend.new_cache(3, 15)
    rows = [tokens(14, 1), tokens(4, 2), tokens(8, 3)]
    forward(backend, cache, rows, [0, 0, 0])
    cache.copy_row(2, 0, 8)
    more = [tokens(3, 4), tokens(3, 5)]
    logits = forward(backend, cache, more, [8, 4])
    for row, extra, actual in ((rows[2], more[0], logits[0]), (rows[1], more[1], logits[1])):
        expected = alone(backend, np.concatenate((row, extra)))[len(row) :]
        assert np.abs(actual - expected).max() <= BOUND


def test_rows_of_an_arena_in_any_place(backend: OnnxRuntimeBackend) -> None:
    """More rows than a batch has; a step over some in the middle leaves the others as they are."""
    arena = backend.new_arena(7, 20)
    rows = [tokens(9, 1), tokens(4, 2)]
    arena.data[:] = 7
    ids = np.zeros((2, 9), np.int64)
    ids[0], ids[1, :4] = rows
    lengths, wanted = np.array([9, 4]), np.tile(np.arange(9), (2, 1))
    logits = backend.forward(arena, ids, np.zeros(2, np.int64), lengths, wanted, first_row=4)
    for row, actual in zip(rows, logits, strict=True):
        assert np.abs(actual[: len(row)] - alone(backend, row)).max() <= BOUND
    assert (arena.data[:, :, [0, 1, 2, 3, 6]] == 7).all()
    with pytest.raises(GenerationError, match="capacity of 41 tokens"):
        backend.new_arena(1, 41)


def test_memory_of_a_row_is_given_back(backend: OnnxRuntimeBackend) -> None:
    """All pages that lie in the tokens wholly, and none of its neighbours: given back, they read as zeros."""
    arena = OnnxRuntimeCache(backend._engine, 3, 999, lazy=True)
    assert arena.token_bytes * 3 * 999 == arena.data.nbytes
    for length in (999, 500):
        arena.data[:] = 7
        arena.release_row(1, length)
        assert (arena.data[:, :, [0, 2]] == 7).all()
        tokens_bytes = arena.data[0, 0, 0, 0, :length].nbytes
        zeros = int((arena.data[:, :, 1] == 0).sum()) * arena.data.itemsize
        heads = 2 * arena.data.shape[0] * arena.data.shape[3]
        assert zeros >= heads * (tokens_bytes - 2 * mmap.PAGESIZE)
        assert (arena.data[:, :, 1, :, length + mmap.PAGESIZE // 48 :] == 7).all()
    backend.new_cache(1, 40).release_row(0, 40)  # keeps its memory, as it has pages of 2 MiB


def test_what_lies_beyond_the_valid_tokens_does_not_matter(backend: OnnxRuntimeBackend) -> None:
    cache = backend.new_cache(2, 15)
    cache.data[:] = 1e3
    rows = [tokens(9, 1), tokens(4, 2)]
    parts = forward(backend, cache, [row[:-1] for row in rows], [0, 0])
    last = forward(backend, cache, [row[-1:] for row in rows], [8, 3])
    for row, *logits in zip(rows, parts, last, strict=True):
        assert np.abs(np.concatenate(logits) - alone(backend, row)).max() <= BOUND


@pytest.mark.parametrize("past", [0, 3])
def test_no_logits(backend: OnnxRuntimeBackend, past: int) -> None:
    """As for all pieces of a prompt but the last."""
    cache = backend.new_cache(2, 12)
    if past:
        forward(backend, cache, [tokens(3), tokens(3, 1)], [0, 0])
    logits = backend.forward(
        cache,
        np.stack((tokens(4, 2), tokens(4, 3))),
        np.full(2, past),
        np.array([4, 2]),
        np.zeros((2, 0), np.int64),
    )
    assert logits.shape == (2, 0, VOCAB)
    assert (np.abs(cache.data[:, :, 0, :, past + 3]).max(axis=(-1, -2)) > 0).all()


def test_only_the_logits_asked_for(backend: OnnxRuntimeBackend) -> None:
    """Any order, repeated, another number than tokens; inputs need not be contiguous."""
    row = tokens(6)
    ids = np.repeat(row, 2)[None, ::2]
    wanted = np.array([[5, 0, 5, 2]])
    logits = backend.forward(backend.new_cache(1, 6), ids, np.array([0]), np.array([6]), wanted)
    assert np.abs(logits[0] - alone(backend, row)[wanted[0]]).max() <= BOUND


@pytest.mark.parametrize(
    ("batch", "capacity", "message"),
    [
        (5, 10, r"batch 5 is out of range: .* 1 to 4; rebuild with batch\.max=5"),
        (0, 10, "batch 0 is out of range"),
        (1, 41, r"capacity of 41 tokens .* 1 to 40; rebuild with capacity\.max=41"),
        (1, 0, "capacity of 0 tokens is out of range"),
    ],
)
def test_cache_beyond_what_was_built(
    backend: OnnxRuntimeBackend, batch: int, capacity: int, message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        backend.new_cache(batch, capacity)


@pytest.mark.parametrize(("past", "new"), [([0, 0], [3, 9]), ([2, 8], [1, 1]), ([0, 6], [1, 3])], ids=str)
def test_full_cache(backend: OnnxRuntimeBackend, past: list[int], new: list[int]) -> None:
    cache = backend.new_cache(2, 8)
    message = rf"row 1: {past[1]} tokens cached and {new[1]} more exceed the cache's capacity of 8"
    with pytest.raises(GenerationError, match=message):
        forward(backend, cache, [tokens(count) for count in new], past)
    assert not cache.data.any()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 3, r"input 'past_key\.2': the manifest says float32\[.*\], the graph has none"),
        (
            "num_hidden_layers",
            1,
            r"input 'past_key\.1': the manifest says there is none, the graph float32\[",
        ),
        (
            "num_key_value_heads",
            7,
            r"the manifest says float32\[\*, 7, \*, \d+\], the graph float32\[\*, \d, ",
        ),
        ("head_dim", 5, r"the manifest says float32\[\*, \d, \*, 5\], the graph float32\["),
        (
            "vocab_size",
            1000,
            r"output 'logits': the manifest says float32\[\*, \*, 1000\], the graph float32",
        ),
    ],
)
def test_engine_that_the_manifest_does_not_describe(
    package: Package, field: str, value: int, message: str
) -> None:
    other = dataclasses.replace(package.engine, **{field: value})  # type: ignore[arg-type]
    with pytest.raises(PackageError, match=rf"model\.onnx: .*{message}"):
        OnnxRuntimeBackend(package.folder, other)


def test_a_cache_larger_than_the_memory_is_refused(package: Package) -> None:
    sizes = {"max_batch": 1 << 16, "max_capacity": 1 << 24}
    large = OnnxRuntimeBackend(package.folder, dataclasses.replace(package.engine, **sizes))  # type: ignore[arg-type]
    with pytest.raises(GenerationError, match=r"no memory for a cache of 65536 x 16777216 tokens"):
        large.new_cache(1 << 16, 1 << 24)


def test_file_that_is_no_engine(package: Package, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"ONNX Runtime .* cannot load .*model\.onnx"):
        OnnxRuntimeBackend(tmp_path, package.engine)
    (tmp_path / package.engine.file).write_bytes(b"not a model")
    with pytest.raises(PackageError, match=r"cannot load .*model\.onnx"):
        OnnxRuntimeBackend(tmp_path, package.engine)


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
from q2export.package.reader import read_package
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend

def anonymous():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

package = read_package(sys.argv[1], "none")
before = anonymous()
backend = OnnxRuntimeBackend(package.folder, package.manifest.engine, threads=1)
cache, one = backend.new_cache(1, 16), np.ones(1, np.int64)
backend.forward(cache, np.array([[1, 2, 3]]), 0 * one, 3 * one, np.array([[2]]))
backend.forward(cache, np.array([[4]]), 3 * one, one, np.array([[0]]))
print(json.dumps(anonymous() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc/self/status, as on Linux")
def test_float32_weights_are_mapped(tmp_path: Path) -> None:
    """200 MB of weights take next to no memory of the process."""
    config = tiny_config(hidden_size=512, intermediate_size=4096, num_attention_heads=8, num_hidden_layers=6,
                         vocab_size=20_000)  # fmt: skip
    checkpoint = write_sparse_checkpoint(tmp_path / "checkpoint", config, dtype="F32")
    result = q2export.export(checkpoint, tmp_path / "package", target="onnxruntime", weights="link")
    weights = result.manifest.weights.in_place_bytes
    assert weights > 200e6

    command = [sys.executable, "-c", MEMORY, str(result.package)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(json.loads(answer.stdout)) < weights / 8
