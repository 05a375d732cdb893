"""Engines for ONNX Runtime on CUDA, run on the CPU: the same graphs, bindings and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q2export import api
from q2export.package.reader import Package, read_package
from q2export.runtime.engine import Engine
from tests.helpers.checkpoints import CHECKPOINTS
from tests.host_cuda.compiling import compile_for_host
from tests.plugins.cuda_ops import glue
from tests.runtime.onnxruntime_cuda.fakes import backend_of

FLOAT16 = {"dtype": "float16", "capacity.max": 128, "prefill_chunk": 32, "max_logits": 8}


DENSE, MIXTURE = CHECKPOINTS / "qwen2-tiny", CHECKPOINTS / "qwen2-moe-tiny"


def built(model: Path, folder: Path, **overrides: object) -> Package:
    """In float16, which ONNX Runtime computes on the CPU, too; of bfloat16 it cannot."""
    done = api.build(model, folder, profile="cuda", overrides={**FLOAT16, **overrides})
    return read_package(done.package)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return built(DENSE, tmp_path_factory.mktemp("packages") / "dense")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return built(MIXTURE, tmp_path_factory.mktemp("packages") / "mixture")


def verified(package: Package, model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The report of ``verify``, which finds the fake GPU where it would open a real one."""

    def open_backend(folder: Path, info: object, max_logits: int) -> object:
        assert (folder, max_logits) == (package.folder, 8)
        return backend_of(package, None)[0]

    monkeypatch.setattr("q2export.runtime.backends.onnxruntime_cuda.open.open_backend", open_backend)
    return api.verify(package.folder, model, greedy_tokens=8)


def test_verify_compares_with_pytorch(dense: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    report = verified(dense, DENSE, monkeypatch)
    assert report.passed, report


@pytest.mark.parametrize(("model", "weights"), [(DENSE, "int8"), (MIXTURE, "int4")])
def test_quantized_weights_equal_those_of_pytorch(
    model: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through ``MatMulNBits``, ``GatherBlockQuantized`` and ``Q2QuantizedMoE``, codes in place."""
    package = built(model, tmp_path / "p", **{"quantization.weights": weights})
    report = verified(package, package.folder / "weights", monkeypatch)
    assert report.passed, report
    if model is MIXTURE:
        by_kernel, _ = backend_of(package, glue(compile_for_host("libq2export_kernels.so"), "nullptr"))
        by_body, _ = backend_of(package, None)
        found, expected = (Engine(one).score(np.arange(9)) for one in (by_kernel, by_body))
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_kernels_give_what_function_bodies_do(mixture: Package) -> None:
    """Two rows of ragged prompts, prefill in chunks, then decode steps as graphs."""
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6] * 5, [2, 7, 1]]
    options = {"max_new_tokens": 6, "do_sample": False}
    by_body, _ = backend_of(mixture, None)
    by_kernel, cuda = backend_of(mixture, glue(compile_for_host("libq2export_kernels.so"), "nullptr"))
    expected = Engine(by_body).generate_batch(prompts, **options)
    found = Engine(by_kernel).generate_batch(prompts, **options)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert cuda.count("capture") == 1
    assert cuda.count("launch") == 6 - 1 - 2
    tokens = np.array(prompts[0])
    difference = np.abs(Engine(by_kernel).score(tokens) - Engine(by_body).score(tokens)).max()
    assert difference < 0.02


def test_chunks_and_asked_positions_do_not_change_the_logits(dense: Package) -> None:
    """40 positions of 40 tokens, of which a call takes 32 and gives 8."""
    backend, cuda = backend_of(dense, None)
    tokens = np.array([[(7 * n) % 1000 for n in range(40)]])
    cuda.calls.clear()
    scores = Engine(backend).score(tokens[0])
    assert cuda.count("execute") == 5
    cache = backend.new_cache(1, 64)
    last = np.array([[7]])
    for start in range(0, 40, 8):
        chunk = tokens[:, start : start + 8]
        logits = backend.forward(cache, chunk, np.array([start]), np.array([8]), last).copy()
    np.testing.assert_allclose(logits[0, 0], scores[-1], atol=0.02)
