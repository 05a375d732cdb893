"""The HTTP service of docs/embedding.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import q2export
from q2export.runtime.engine import Engine
from tests.runtime.fakes import FakeBackend, byte_tokenizer

testclient = pytest.importorskip("starlette.testclient", reason="starlette's test client is not installed")
DOCS = Path(__file__).parents[2] / "docs" / "embedding.md"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    tokenizer = byte_tokenizer()
    engine = Engine(FakeBackend(vocab_size=tokenizer.size), tokenizer=tokenizer)
    monkeypatch.setattr(q2export, "load", lambda folder: engine, raising=False)
    (source,) = re.findall(r"```python\n(.*?Starlette\(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)[
        -1:
    ]
    service: dict[str, Any] = {}
    exec(source.split("```python\n")[-1], service)
    with testclient.TestClient(service["app"], raise_server_exceptions=False) as client:
        yield client


def test_it_streams_text(client: Any) -> None:
    answer = client.post("/complete", json={"prompt": "A class is", "max_new_tokens": 9})
    assert answer.status_code == 200
    assert answer.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{}", 'an object with a text "prompt"'),
        (b'{"prompt": 3}', 'an object with a text "prompt"'),
        (b"[1]", 'an object with a text "prompt"'),
        (b"{", "must be JSON"),
        (b'"\xff"', "must be JSON"),
        (b'{"prompt": ""}', "empty"),
        (b'{"prompt": "x", "max_new_tokens": "many"}', "max_new_tokens must be an integer"),
    ],
)
def test_what_it_cannot_answer_is_the_callers_error(client: Any, body: bytes, message: str) -> None:
    answer = client.post("/complete", content=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True)
