"""What C++ generates against what Python does: the same bits, the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import q2export
from q2export.runtime.engine import Engine as PythonEngine
from tests.runtime.cpp.binding import Engine, Library

PROFILES = ("cpu", "cpu-int8", "cpu-int4")
RAGGED = [[395, 86, 77, 82], [5], list(range(7, 130)), [17, 1100, 3]]
SAMPLED: tuple[dict[str, Any], ...] = (
    {"do_sample": False, "repetition_penalty": 1.3, "min_new_tokens": 12},
    {"seed": 7, "temperature": 0.9, "top_p": 0.95},
    {"seed": [1, 2, 2**64 - 1, 3], "temperature": 1.5, "top_k": 0, "top_p": 0.8, "min_p": 0.02},
    {
        "seed": 5,
        "top_k": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.7,
        "logit_bias": {3: 4.5, 9: -100.0},
    },
)


@pytest.fixture(
    scope="module", params=[(m, p) for m in ("qwen2-tiny", "qwen2-moe-tiny") for p in PROFILES], ids="-".join
)
def engines(
    request: pytest.FixtureRequest,
    checkpoints: Path,
    library: Library,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[PythonEngine, Engine]]:
    """The same package in both languages."""
    model, profile = request.param
    output = tmp_path_factory.mktemp("cpp") / "package"
    q2export.build(checkpoints / model, output, profile=profile, parity=False)
    python, ours = q2export.load(output, threads=1), library.open(output)
    yield python, ours
    ours.release()
    python.close()


def test_logits_have_the_same_bits(engines: tuple[PythonEngine, Engine]) -> None:
    python, ours = engines
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, python.backend.vocab_size, 301)]
    expected = python.score(tokens)
    found = ours.score(tokens, python.backend.vocab_size)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_tokens_are_the_same(engines: tuple[PythonEngine, Engine]) -> None:
    python, ours = engines
    for options in ({"do_sample": False}, *SAMPLED):
        expected = python.generate_batch(RAGGED, max_new_tokens=24, **options)
        found = ours.generate(RAGGED, max_new_tokens=24, **options)
        assert [(one.token_ids, one.finish_reason) for one in found] == [
            (one.token_ids, one.finish_reason) for one in expected
        ], options
