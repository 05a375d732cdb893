"""What TensorRT-RTX is asked for: kernels that graphs can hold, and a file of those it has compiled."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q2export.runtime.backends.cuda.backend import CudaBackend
from q2export.runtime.backends.tensorrt.executor import make_backend
from q2export.runtime.backends.tensorrt.runtime_cache import RuntimeCache, runtime_cache_file
from q2export.runtime.engine import Engine
from tests.runtime.tensorrt.fakes import (
    DECODE,
    PREFILL,
    RTX,
    TRT,
    FakeCuda,
    FakeEngine,
    FakeRuntimeCache,
    engine_info,
    loaded,
)


def make(
    trt: Any, cache_file: Path | None = None, limits: list[dict[str, Any]] | None = None
) -> tuple[CudaBackend, FakeCuda, FakeEngine]:
    limits = limits or [PREFILL, DECODE]
    cuda = FakeCuda()
    engine = FakeEngine(cuda, limits)
    return make_backend(engine_info(), loaded(engine, limits), cuda, trt, cache_file), cuda, engine


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([PREFILL, DECODE], ["lazy", "eager"]), ([DECODE, PREFILL], ["eager", "lazy"]), ([PREFILL], ["eager"])],
)
def test_the_context_that_decodes_waits_for_its_kernels(limits: list[Any], expected: list[str]) -> None:
    _, _, engine = make(RTX, limits=limits)
    assert [one.dynamic_shapes_kernel_specialization_strategy for one in engine.configs] == expected
    assert {one.strategy for one in engine.configs} == {"user managed"}


def test_the_full_tensorrt_has_no_such_settings(tmp_path: Path) -> None:
    _, _, engine = make(TRT, tmp_path / "kernels")
    assert (len(engine.contexts), engine.configs) == (2, [])


def test_compiled_kernels_are_kept_from_the_first_capture_on(tmp_path: Path) -> None:
    path = tmp_path / "q2export" / "kernels.cache"
    backend, cuda, engine = make(RTX, path)
    (cache,) = {one.cache for one in engine.configs}  # both contexts have one
    assert cache is not None
    cache.kernels = b"decode"
    Engine(backend).generate([1, 2, 3], max_new_tokens=2, do_sample=False)
    assert (cuda.count("capture"), path.exists()) == (0, False)
    Engine(backend).generate([1, 2, 3], max_new_tokens=6, do_sample=False)
    assert (cuda.count("capture"), path.read_bytes()) == (1, b"1.7:decode")
    cache.kernels = b"decode and prefill"
    del backend
    gc.collect()
    assert path.read_bytes() == b"1.7:decode and prefill"
    again = make(RTX, path)[2]
    assert {one.cache.kernels for one in again.configs if one.cache} == {b"decode and prefill"}
    assert [each.name for each in path.parent.iterdir()] == ["kernels.cache"]


def test_a_file_that_is_not_taken_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "kernels.cache"
    path.write_bytes(b"1.6:old")
    cache = FakeRuntimeCache()
    kept = RuntimeCache(cache, path)
    kept.save()
    assert path.read_bytes() == b"1.6:old"  # nothing was compiled
    cache.kernels = b"new"
    kept.save()
    assert path.read_bytes() == b"1.7:new"


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FakeRuntimeCache()
    cache.kernels = b"new"
    RuntimeCache(cache, tmp_path / "file" / "kernels.cache").save()
    assert (tmp_path / "file").read_bytes() == b""


def test_the_file_is_the_users_and_one_for_each_engine_version_and_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    engine = tmp_path / "package" / "rank0.engine"
    usual = runtime_cache_file(engine, "1.7.1", "A100")
    assert usual is not None and usual.is_relative_to(tmp_path / ".cache" / "q2export")
    others = [(engine, "1.7.2", "A100"), (engine, "1.7.1", "L4"), (tmp_path / "x.engine", "1.7.1", "A100")]
    assert len({usual, *(runtime_cache_file(*other) for other in others)}) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    moved = runtime_cache_file(engine, "1.7.1", "A100")
    assert moved is not None and moved.is_relative_to(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert runtime_cache_file(engine, "1.7.1", "A100") == usual


def test_a_step_is_captured_right_behind_a_run_of_its_own() -> None:
    """Steps of two caches and of one and two rows take turns, with prefills between them."""
    backend, cuda, engine = make(RTX)
    caches = [backend.new_cache(2, 16), backend.new_cache(2, 24)]
    decode = engine.contexts[1]
    ran: list[dict[str, tuple[int, ...]]] = []
    capture = cuda.capture

    def watched(enqueue: Any, stream: int) -> int:
        ran.append(decode.steps[-1])
        assert cuda.calls[-1] == ("download",), "what comes before is the step itself"
        graph = capture(enqueue, stream)
        assert decode.shapes == ran[-1]
        return graph

    cuda.capture = watched  # type: ignore[method-assign]
    for turn in range(4):
        for cache in caches:
            for rows in (1, 2):
                ones, zeros = np.ones(rows, np.int64), np.zeros((rows, 1), np.int64)
                backend.forward(cache, zeros, ones * turn, ones, zeros)
                wide = np.zeros((rows, 3), np.int64)
                backend.forward(cache, wide, ones * turn, ones * 3, zeros)
    assert len(ran) == cuda.count("capture") == 4
    assert cuda.count("launch") == 2 * 4  # the third and the fourth turn
