from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers

from q2export.runtime.server.tools import ToolCallParser
from q2export.runtime.tokenizer import Tokenizer
from tests.runtime.fakes import byte_tokenizer, hashed_logits
from tests.runtime.server.conftest import END_ID, QUESTION, events, fake_engine, says, says_ids, served

URL = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"enum": [1, 2]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def parsed(*pieces: str) -> tuple[str, list[tuple[str, str]]]:
    """Content and (name, arguments) of a text, joined from its deltas."""
    parser, content, calls = ToolCallParser(), "", []
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.flush()
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append((call["function"]["name"], ""))
            name, arguments = calls[call["index"]]
            calls[call["index"]] = (name, arguments + call["function"]["arguments"])
    assert parser.calls == len(calls)
    return content, calls


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello.\n ", "Hello.\n ", []),
        ("", "", []),
        (CALL, "", [("get_weather", '{"city": "Oslo"}')]),
        (f"Let me see. \n{CALL}\n", "Let me see.", [("get_weather", '{"city": "Oslo"}')]),
        (
            f"{CALL}\n{CALL}\nDone.",
            "\nDone.",
            [("get_weather", '{"city": "Oslo"}')] * 2,
        ),
        (
            '<tool_call>{"name":"f","arguments":{"a":"}\\"</tool_call>","b":[{}]}}</tool_call>',
            "",
            [("f", '{"a":"}\\"</tool_call>","b":[{}]}')],
        ),
        # The other order, arguments as a text, none at all.
        ('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', "", [("f", '{"x": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        # Cut off: in the arguments they stay half, before them the call stays text.
        ('<tool_call>\n{"name": "f", "arguments": {"a": [1, ', "", [("f", '{"a": [1, ')]),
        ('<tool_call>\n{"name": "f", "argu', '<tool_call>\n{"name": "f", "argu', []),
        ('<tool_call>\n{"arguments": {}, "name": "f"}', "", [("f", "{}")]),
        # No calls.
        ("a < b <tool_ <tool_call", "a < b <tool_ <tool_call", []),
        ("<tool_call>nothing</tool_call> x", "<tool_call>nothing</tool_call> x", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
    ],
    ids=str,
)
def test_calls_in_a_text_however_it_is_cut(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parsed(text) == (content, calls)
    assert parsed(*text) == (content, calls)
    for cut in range(len(text)):
        assert parsed(text[:cut], text[cut:]) == (content, calls)


def test_arguments_are_passed_on_as_they_come() -> None:
    parser = ToolCallParser()
    deltas = [parser.feed(piece) for piece in ('<tool_call>{"name": "f", "arguments": {"a', '": "b', '"}')]
    arguments = [[c["function"]["arguments"] for d in each for c in d["tool_calls"]] for each in deltas]
    assert arguments == [["", '{"a'], ['": "b'], ['"}']]


def ask(model: Any, **fields: Any) -> tuple[Any, list[Any]]:
    """The choice of an answer, and the choices of its stream."""
    body = {"messages": QUESTION, "tools": [WEATHER, TIME], "max_tokens": 200, **fields}
    with served(fake_engine(model, max_capacity=1024)) as client:
        answer = client.post(URL, json=body)
        assert answer.status_code == 200, answer.text
        chunks = events(client.post(URL, json={**body, "stream": True}).text)
    return answer.json()["choices"][0], [chunk["choices"][0] for chunk in chunks]


def test_without_a_choice_the_model_decides_and_text_stays_text() -> None:
    choice, _ = ask(says(b"No <tool> needed."))
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == "No <tool> needed."
    assert "tool_calls" not in choice["message"]


def test_a_call_the_model_makes_is_streamed_as_raw_text_of_its_arguments() -> None:
    choice, streamed = ask(says(f"Wait. {CALL}".encode()))
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == streamed[-1]["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Wait."
    assert call["type"] == "function"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    deltas = [c for each in streamed for c in each["delta"].get("tool_calls", ())]
    assert deltas[0]["function"] == {"name": "get_weather", "arguments": ""}
    assert all("id" not in delta and delta["index"] == 0 for delta in deltas[1:])
    assert "".join(delta["function"]["arguments"] for delta in deltas) == call["function"]["arguments"]
    assert len(deltas) > 5


def test_a_call_the_model_gets_wrong_is_kept_to_the_schema() -> None:
    wrong = CALL.replace("city", "town").replace("Oslo", "Copenhagen")
    choice, _ = ask(says(f"{wrong} etc.".encode()))
    arguments = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])
    assert set(arguments) <= {"city", "days"}
    assert len(arguments["city"]) <= 6


@pytest.mark.parametrize("parallel", [True, False])
def test_required_gives_nothing_but_calls(parallel: bool) -> None:
    sampling = {"temperature": 1.5, "seed": 3, "top_k": 0}
    choice, _ = ask(hashed_logits, tool_choice="required", parallel_tool_calls=parallel, **sampling)
    message = choice["message"]
    assert message["content"] is None
    assert parallel or len(message["tool_calls"]) == 1
    for call in message["tool_calls"]:
        if call["function"]["name"] == "time":
            assert json.loads(call["function"]["arguments"]) == {}


def test_a_named_tool_is_the_one_that_is_called() -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    choice, _ = ask(says(b"I will not."), tool_choice=named)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]).keys() <= {"city", "days"}
    assert choice["finish_reason"] == "tool_calls"


def test_the_markers_may_be_tokens_of_their_own_as_in_qwen2_5() -> None:
    core = tokenizers.Tokenizer.from_str(byte_tokenizer().to_json())
    core.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer = Tokenizer(core, {})
    said = f"Wait. {CALL.replace('city', 'town')}"
    model = says_ids([*tokenizer.encode(said), END_ID])
    for fields, content in (({}, "Wait."), ({"tool_choice": "required"}, None)):
        engine = fake_engine(model, vocab_size=tokenizer.size)
        engine.tokenizer = tokenizer
        with served(engine) as client:
            body = {"messages": QUESTION, "tools": [WEATHER], "max_tokens": 100, **fields}
            message = client.post(URL, json=body).json()["choices"][0]["message"]
        assert message["content"] == content
        (call,) = message["tool_calls"]
        assert json.loads(call["function"]["arguments"]).keys() <= {"city", "days"}


def test_none_hides_the_tools() -> None:
    body = {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "none"}
    with served(fake_engine(says(CALL.encode()))) as client:
        answer = client.post(URL, json=body).json()
        offered = client.post("/tokenize", json={"messages": QUESTION, "tools": [WEATHER]}).json()["count"]
    assert answer["choices"][0]["message"]["content"] == CALL
    assert answer["usage"]["prompt_tokens"] < offered


def test_a_schema_that_cannot_be_enforced_binds_only_where_it_is_strict() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}
    function = {"name": "f", "parameters": parameters}
    call = '<tool_call>\n{"name": "f", "arguments": {"x": [1, 1]}}\n</tool_call>'
    choice, _ = ask(says(call.encode()), tools=[{"type": "function", "function": function}])
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"x": [1, 1]}'
    body = {"messages": QUESTION, "tools": [{"type": "function", "function": {**function, "strict": True}}]}
    with served(fake_engine()) as client:
        error = client.post(URL, json=body).json()["error"]
    assert (error["param"], "uniqueItems" in error["message"]) == ("tools[0].function.parameters", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [TIME], "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_tools_is_refused(fields: dict[str, Any], param: str) -> None:
    with served(fake_engine()) as client:
        answer = client.post(URL, json={"messages": QUESTION, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_model_whose_template_has_no_place_for_tools_says_so() -> None:
    with served(fake_engine(template="{% for m in messages %}{{ m.content }}{% endfor %}")) as client:
        error = client.post(URL, json={"messages": QUESTION, "tools": [TIME]}).json()["error"]
    assert (error["param"], "template" in error["message"]) == ("tools", True)
