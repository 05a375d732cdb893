"""The ``model.py`` of a repository, over a stub of Triton's side."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import q2export
from q2export.runtime.triton.repository import INPUTS, write_model
from q2export.runtime.triton.settings import ModelSettings
from tests.runtime.triton import stub
from tests.runtime.triton.stub import Request, TritonError

PROMPT = "A class is"
ASKED = {"max_tokens": 30, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(qwen2_tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model as Triton loads it."""
    settings = ModelSettings(qwen2_tiny_package, threads=1, rows=2, max_queue=1)
    written = write_model(settings, tmp_path_factory.mktemp("repository"), name="m")
    sys.modules["triton_python_backend_utils"] = stub
    try:
        module = runpy.run_path(str(written.folder / "1" / "model.py"))
    finally:
        del sys.modules["triton_python_backend_utils"]
    given = {key: {"string_value": text} for key, text in settings.parameters().items()}
    loaded = module["TritonPythonModel"]()
    loaded.initialize(
        {
            "model_config": json.dumps({"name": "m", "parameters": given}),
            "model_repository": str(written.folder),
            "model_version": "1",
            "model_name": "m",
        }
    )
    yield loaded
    loaded.finalize()


@pytest.fixture(scope="module")
def alone(qwen2_tiny_package: Path) -> Any:
    """The same by the engine itself."""
    with q2export.load(qwen2_tiny_package, threads=1) as engine:
        return engine.generate(PROMPT, max_new_tokens=30, do_sample=False, ignore_eos=True)


def asked(**changes: Any) -> str:
    return json.dumps(ASKED | changes)


def test_the_text_is_that_of_the_engine_however_it_is_sent(model: Any, alone: Any) -> None:
    stream = Request(text_input=PROMPT.encode(), stream=True, sampling_parameters=asked().encode())
    new = Request(text_input=PROMPT.encode(), exclude_input_in_output=True, sampling_parameters=asked())
    whole = Request(text_input=PROMPT, parameters=asked())
    model.execute([stream, new])
    assert stream.text() == new.text() == alone.text
    assert [token for each in stream.answer() for token in each.value("output_ids")] == list(alone.token_ids)
    assert len(stream.answer()) > 20
    assert [each.value("finish_reason") for each in stream.answer()][-2:] == [None, [b"length"]]
    model.execute([whole])
    (answer,) = whole.answer()
    assert whole.text() == PROMPT + alone.text
    assert answer.value("output_ids") == list(alone.token_ids)


def test_token_ids_and_a_grammar(model: Any) -> None:
    request = Request(
        input_ids=[64, 66, 5], parameters=asked(structured_outputs={"choice": ["red"]}, ignore_eos=False)
    )
    model.execute([request])
    assert request.text() == "red"
    assert request.answer()[-1].value("finish_reason") == [b"stop"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "either text_input or input_ids"),
        ({"text_input": "a", "input_ids": [1]}, "either text_input or input_ids"),
        ({"text_input": b"\xff"}, "text_input is not UTF-8"),
        ({"text_input": ""}, "empty"),
        ({"input_ids": [99999]}, "99999"),
        (
            {"text_input": "a", "parameters": '{"max_token": 5}'},
            "no parameter 'max_token'; did you mean 'max_tokens'",
        ),
        ({"text_input": "a", "parameters": '{"n": 2}'}, "n has no effect: a request makes one text"),
        ({"text_input": "a", "sampling_parameters": '{"top_p": 2}'}, "top_p: .*found 2"),
        ({"text_input": "a", "sampling_parameters": "{"}, "JSON"),
        ({"text_input": "a", "parameters": '{"max_tokens": 9999}'}, "holds 1024 tokens"),
        ({"text_input": "a", "stream": True, "exclude_input_in_output": False}, "new text alone"),
    ],
)
def test_what_is_wrong_is_answered(model: Any, inputs: dict[str, Any], message: str) -> None:
    request = Request(**inputs)
    assert set(request.tensors) <= {name for name, *_ in INPUTS}
    model.execute([request])
    (answer,) = request.answer()
    assert answer.error is not None
    assert answer.error.code == TritonError.INVALID_ARG
    assert re.search(message, answer.error.message), answer.error.message


def test_a_client_that_goes_away_and_a_queue_that_is_full(model: Any, alone: Any) -> None:
    long = asked(max_tokens=1000)
    running = [Request(text_input=PROMPT, stream=True, parameters=long) for _ in range(2)]
    waiting, refused = (Request(text_input=PROMPT, stream=True, parameters=asked()) for _ in range(2))
    model.execute([*running, waiting, refused])
    (answer,) = refused.answer()
    assert answer.error is not None and answer.error.code == TritonError.UNAVAILABLE
    running[0].sender.cancelled = True
    running[1].sender.broken = True
    for request in running:
        last = request.answer()[-1].error
        assert last is not None and last.code == TritonError.CANCELLED
    assert waiting.text() == alone.text
