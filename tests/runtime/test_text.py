"""The engine with a tokenizer: text in, text out, stop strings, streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.runtime.chat import ChatTemplate
from q2export.runtime.engine import Engine
from q2export.runtime.generation_config import GenerationDefaults
from tests.runtime.fakes import END, START, FakeBackend, byte_ids, byte_tokenizer, scripted

TOKENIZER = byte_tokenizer([("a", "b"), ("ab", "c")])
END_ID = TOKENIZER.encode(END)[0]
PROMPT = [7]


def saying(tokens: Sequence[int], eos: Sequence[int] = (END_ID,)) -> Engine:
    """An engine that answers any one-token prompt with ``tokens``, then with ``!`` (token 0) for ever."""
    backend = FakeBackend(vocab_size=TOKENIZER.size, model=scripted(tokens))
    return Engine(backend, tokenizer=TOKENIZER, defaults=GenerationDefaults(eos_token_ids=tuple(eos)))


def streamed(engine: Engine, **options: Any) -> tuple[list[str], Any]:
    events = list(engine.stream(PROMPT, **options))
    assert [event.result is None for event in events] == [True] * (len(events) - 1) + [False]
    result = events[-1].result
    assert result is not None
    assert tuple(event.token_id for event in events) == result.token_ids
    return [event.text for event in events], result


def test_text_leaves_out_the_end_of_text_token() -> None:
    result = saying([*TOKENIZER.encode("Hi there"), END_ID]).generate(PROMPT)
    assert (result.text, result.token_ids[-1], result.finish_reason) == ("Hi there", END_ID, "stop")


def test_text_leaves_out_an_end_of_text_token_that_is_not_special() -> None:
    a, b = TOKENIZER.encode("x")[0], TOKENIZER.encode("y")[0]
    assert saying([a, b], eos=[b]).generate(PROMPT).text == "x"


def test_prompts_may_be_text() -> None:
    backend = FakeBackend(vocab_size=TOKENIZER.size)
    engine = Engine(backend, tokenizer=TOKENIZER)
    expected = engine.generate(TOKENIZER.encode("héllo"), max_new_tokens=5)
    assert engine.generate("héllo", max_new_tokens=5).token_ids == expected.token_ids
    batch = engine.generate_batch(["héllo", [1, 2]], max_new_tokens=5)
    assert batch[0].token_ids == expected.token_ids


def test_stop_string_across_token_borders() -> None:
    engine = saying(TOKENIZER.encode("one\nUser: two"))
    texts, result = streamed(engine, stop=["\nUser:", "###"])
    assert result.text == "".join(texts) == "one"
    assert (result.finish_reason, result.stop_string) == ("stop", "\nUser:")
    assert TOKENIZER.decode(result.token_ids) == "one\nUser:"


def test_stop_string_inside_a_token_cuts_the_text_there() -> None:
    result = saying(TOKENIZER.encode("x" + "abc" + "z")).generate(PROMPT, stop="b")
    assert (result.text, result.stop_string) == ("xa", "b")
    assert TOKENIZER.decode(result.token_ids) == "xabc"


def test_stop_string_of_several_bytes_per_character() -> None:
    texts, result = streamed(saying(byte_ids("你好。再见".encode())), stop="。")
    assert result.text == "你好"
    assert texts == ["", "", "你", "", "", "好", "", "", ""]


def test_text_held_back_is_shown_when_the_tokens_run_out() -> None:
    texts, result = streamed(saying(TOKENIZER.encode("xy##")), stop="###", max_new_tokens=4)
    assert (result.text, result.finish_reason) == ("xy##", "length")
    assert texts == ["x", "y", "", "##"]


def test_text_held_back_is_shown_before_the_end_of_text_token() -> None:
    result = saying([*TOKENIZER.encode("xy##"), END_ID]).generate(PROMPT, stop="###")
    assert (result.text, result.stop_string) == ("xy##", None)


def test_stop_string_that_is_a_special_token_ends_by_its_id() -> None:
    start = TOKENIZER.encode(START)[0]
    engine = saying([*TOKENIZER.encode("hi"), start, 5])
    result = engine.generate(PROMPT, stop=[START, "zzz"], ignore_eos=True)
    assert (result.text, result.stop_string, result.token_ids[-1]) == ("hi", START, start)


def test_min_new_tokens_looks_for_stop_strings_later() -> None:
    engine = saying(TOKENIZER.encode("a.b.c.d"))
    assert engine.generate(PROMPT, stop=".", min_new_tokens=3).text == "a.b"
    assert engine.generate(PROMPT, stop=".", min_new_tokens=2).text == "a"


def test_half_a_character_at_the_end_is_one_replacement_character() -> None:
    texts, result = streamed(saying(byte_ids("ok🚀".encode())), max_new_tokens=4)
    assert result.text == "ok\ufffd"
    assert texts == ["o", "k", "", "\ufffd"]


def test_closing_a_stream_ends_the_generation() -> None:
    backend = FakeBackend(vocab_size=TOKENIZER.size)
    stream = Engine(backend, tokenizer=TOKENIZER).stream(PROMPT, max_new_tokens=50)
    next(stream)
    next(stream)
    stream.close()
    assert len(backend.calls) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=20),
    st.lists(st.text("aé你#", min_size=1, max_size=3), max_size=2),
    st.integers(1, 20),
    st.integers(0, 3),
)
def test_stream_equals_generate_for_any_bytes(data: bytes, stop: list[str], count: int, minimum: int) -> None:
    engine = saying([*byte_ids(data), END_ID])
    options: dict[str, Any] = {"stop": stop, "max_new_tokens": count, "min_new_tokens": min(minimum, count)}
    texts, result = streamed(engine, **options)
    whole = engine.generate(PROMPT, **options)
    assert "".join(texts) == result.text == whole.text
    assert (result.token_ids, result.finish_reason, result.stop_string) == (
        whole.token_ids,
        whole.finish_reason,
        whole.stop_string,
    )
    if not stop:
        assert result.text == TOKENIZER.decode(result.token_ids)


def test_chat_prompt_renders_and_encodes() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        TOKENIZER.special_tokens,
    )
    engine = Engine(FakeBackend(vocab_size=300), tokenizer=TOKENIZER, chat_template=template)
    prompt = engine.chat_prompt([{"role": "user", "content": "Hi"}])
    assert prompt == TOKENIZER.encode(f"user: Hi{END}assistant: ")
    assert prompt.count(END_ID) == 1


def test_logits_after_the_text_are_not_asked_for() -> None:
    """The last token is never fed back: n tokens take one prefill and n - 1 steps."""
    backend = FakeBackend(vocab_size=TOKENIZER.size)
    Engine(backend, tokenizer=TOKENIZER).generate(np.array([1, 2]), max_new_tokens=6)
    assert len(backend.calls) == 6
