"""Text through the C ABI: tokenizers of folders and engines, and the text of results."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

import q2export
from q2export.runtime.tokenizer import load_tokenizer
from tests.runtime.cpp.binding import Engine, Library, Q2Error, RawResult
from tests.runtime.cpp.text_binding import Tokenizer

TEXT = "na\u00efve  \u4f60\u597d \U0001f680\x00<|im_end|>"


def test_texts_through_the_c_abi(library: Library, checkpoints: Path) -> None:
    python = load_tokenizer(checkpoints / "qwen2-tiny")
    assert python is not None
    ours = Tokenizer(library, checkpoints / "qwen2-tiny")
    ids = ours.encode(TEXT.encode())
    assert ids == python.encode(TEXT)
    assert ours.encode(b"") == []
    for options in ({"special_tokens_as_text": 1}, {"given": [(0, len(TEXT.encode()))]}):
        assert ours.decode(ours.encode(TEXT.encode(), **options)) == TEXT  # type: ignore[arg-type]
    for keep in (False, True):
        assert ours.decode(ids, keep) == python.decode(ids, skip_special_tokens=not keep)
    shown = ours.streamed([*ids, *python.encode("\U0001f680")[:1]])
    assert "".join(shown) == python.decode(ids) + "\ufffd"
    with pytest.raises(Q2Error, match="generation: text must be UTF-8, byte 1 is not"):
        ours.encode(b"a\xff")
    with pytest.raises(Q2Error, match="generation: the text has 5000 bytes"):
        ours.encode(b"a" * 5000, most_tokens=2)
    with pytest.raises(Q2Error, match=r"config: .*tokenizer\.json"):
        Tokenizer(library, checkpoints)
    ours.release()


def test_an_engine_has_the_text_of_python(library: Library, qwen2_tiny_package: Path) -> None:
    engine = library.open(qwen2_tiny_package)
    tokenizer = Tokenizer(library, engine)
    prompt = tokenizer.encode(b"A class is")
    python = q2export.load(qwen2_tiny_package, threads=1)
    stop = python.generate("A class is", max_new_tokens=30).text.strip()[4:7]
    for options in ({}, {"stop": [stop]}):
        expected = python.generate("A class is", max_new_tokens=30, **options)  # type: ignore[arg-type]
        assert text_of(engine, prompt, max_new_tokens=30, **options) == (expected.text, expected.stop_string)
    engine.release()
    assert tokenizer.decode(prompt) == "A class is"
    tokenizer.release()
    python.close()


def text_of(engine: Engine, prompt: list[int], **options: object) -> tuple[str, str | None]:
    """Text and stop string of a stream's result, whose events show the same text."""
    stream = engine.stream(prompt, **options)
    shown = b""
    while not isinstance(event := stream.next(), str):
        shown += event.text[: event.text_bytes]
    raw = RawResult(ctypes.sizeof(RawResult))
    engine.library.call("q2e_stream_get_result", stream.handle, ctypes.byref(raw))
    assert raw.text == shown
    found = raw.text.decode(), raw.stop_string.decode() if raw.stop_string else None
    stream.release()
    return found
