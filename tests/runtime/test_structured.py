from __future__ import annotations

import json
import re
from typing import Any

import pytest

from q2export.errors import GenerationError
from q2export.runtime.engine import Engine
from q2export.runtime.generation_config import GenerationDefaults
from q2export.runtime.scheduler import Scheduler
from q2export.runtime.structured import Grammar, Grammars
from tests.runtime.fakes import FakeBackend, byte_tokenizer, hashed_logits

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 2},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A model that says anything whatever."""
    tokenizer = byte_tokenizer([("a", "b"), ('"', ":"), ("{", '"')])
    backend = FakeBackend(vocab_size=tokenizer.size + 3, model=hashed_logits, max_capacity=512)
    ends = (tokenizer.size - 2, tokenizer.size - 1)
    return Engine(backend, tokenizer=tokenizer, defaults=GenerationDefaults(eos_token_ids=ends))


def texts(engine: Engine, grammar: Grammar, count: int = 6) -> list[str]:
    """Texts that a grammar lets the model say; all come to their end."""
    with Scheduler(engine) as scheduler:
        running = scheduler.submit_many(
            "x",
            count,
            temperature=1.5,
            top_k=0,
            seed=1,
            max_new_tokens=500,
            processors=[grammar.processor() for _ in range(count)],
        )
        results = [each.result(60) for each in running]
    assert {result.finish_reason for result in results} == {"stop"}
    return [result.text for result in results]


def test_json_of_a_schema_whatever_the_model_would_say(engine: Engine) -> None:
    found = texts(engine, Grammars(engine).json_schema(SCHEMA))
    assert len(set(found)) > 1
    for text in found:
        value = json.loads(text)
        assert {"name", "count"} <= value.keys() <= {"name", "count", "tags"}
        assert len(value["name"]) <= 5
        assert 0 <= value["count"] <= 99
        assert set(value.get("tags", ())) <= {"a", "bc"}
        assert not re.search(r"\s{65}", text)


def test_a_regular_expression_a_choice_and_a_grammar(engine: Engine) -> None:
    grammars = Grammars(engine)
    assert all(
        re.fullmatch(r"[a-c]{2,4}-\d", text) for text in texts(engine, grammars.regex(r"[a-c]{2,4}-\d"))
    )
    assert set(texts(engine, grammars.choice(["yes", 'n"o', "maybe"]))) <= {"yes", 'n"o', "maybe"}
    lark = 'start: "<" (item ",")* item ">"\nitem: /[ab]/'
    assert all(re.fullmatch(r"<([ab],)*[ab]>", text) for text in texts(engine, grammars.lark(lark), 2))


def test_a_text_may_go_on_or_end_where_the_grammar_lets_it(engine: Engine) -> None:
    assert {len(text) for text in texts(engine, Grammars(engine).regex("a{1,3}"), 12)} > {1}


def test_a_text_that_is_cut_off_is_the_beginning_of_one(engine: Engine) -> None:
    grammar = Grammars(engine).regex("abcdefgh")
    with Scheduler(engine) as scheduler:
        result = scheduler.submit("x", max_new_tokens=3, processor=grammar.processor()).result(60)
    assert result.finish_reason == "length"
    assert "abcdefgh".startswith(result.text)


def test_processors_of_one_grammar_know_nothing_of_each_other(engine: Engine) -> None:
    grammar = Grammars(engine).regex("a+b")
    first, second = grammar.processor(), grammar.processor()
    token = engine.tokenizer.encode("a")[0] if engine.tokenizer else 0
    first.accept(token)
    with pytest.raises(GenerationError, match="the grammar cannot go on"):
        second.accept(engine.tokenizer.encode("b")[0] if engine.tokenizer else 0)


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", {"type": "strange"}, "Invalid type: strange"),
        ("json_schema", {"type": "string", "format": "no-such"}, "no-such"),
        ("json_schema", {"$ref": "https://example.org/schema"}, "the JSON schema cannot be used"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "must be an object"),
        ("regex", "(?=a)b", "look-ahead"),
        ("regex", "(", "the regular expression cannot be used"),
        ("lark", "start: other", "other"),
        ("choice", [], "at least one"),
        ("choice", ["a", ""], "none of them empty"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_with_the_reason(
    engine: Engine, what: str, value: Any, message: str
) -> None:
    with pytest.raises(GenerationError, match=re.escape(message)):
        getattr(Grammars(engine), what)(value)


def test_an_engine_without_a_tokenizer_has_no_grammars() -> None:
    with pytest.raises(GenerationError, match="tokenizer"):
        Grammars(Engine(FakeBackend())).regex("a")
