from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.runtime.fakes import END, byte_ids, hashed_logits
from tests.runtime.server.conftest import END_ID, events, fake_engine, says, served

URL = "/v1/completions"


def logprob(prefix: list[int], token: int) -> float:
    """The reference, in float64."""
    logits = hashed_logits(prefix, END_ID + 2).astype(np.float64)
    return float(logits[token] - np.log(np.exp(logits).sum()))


def test_a_text_in_one_piece_and_streamed() -> None:
    body = {"prompt": "a", "stream_options": {"include_usage": True}}
    with served(fake_engine(says(b"bcd"))) as client:
        answer = client.post(URL, json=body).json()
        *chunks, last = events(client.post(URL, json={**body, "stream": True}).text)
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"text": "bcd", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "bcd"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"] == 4


def test_sixteen_tokens_where_no_limit_is_given_as_at_openai() -> None:
    with served(fake_engine(says(b"x" * 99))) as client:
        choice = client.post(URL, json={"prompt": "a"}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


@pytest.mark.parametrize("prompt", [["a", "b"], [byte_ids(b"a"), byte_ids(b"b")]], ids=["texts", "ids"])
def test_several_prompts_and_several_texts_of_each_keep_their_order(prompt: Any) -> None:
    body = {"prompt": prompt, "n": 2, "echo": True, "max_tokens": 3, "temperature": 1, "seed": 5}
    with served(fake_engine(hashed_logits)) as client:
        answer = client.post(URL, json=body).json()
        streamed = ["", "", "", ""]
        for chunk in events(client.post(URL, json={**body, "stream": True}).text):
            (choice,) = chunk["choices"]
            streamed[choice["index"]] += choice["text"]
        alone = client.post(URL, json={**body, "prompt": prompt[1], "n": 1}).json()["choices"][0]["text"]
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [text[0] for text in texts] == ["a", "a", "b", "b"]
    assert texts[0] != texts[1]
    assert streamed == texts
    assert texts[2] == alone
    assert answer["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize("new_tokens", [0, 1])
def test_log_probabilities_of_a_prompt_as_evaluation_harnesses_ask_for_them(new_tokens: int) -> None:
    prompts = [byte_ids(b"a long enough prompt, in more than one call of the engine. " * 2), byte_ids(b"b")]
    body = {"prompt": prompts, "max_tokens": new_tokens, "echo": True, "logprobs": 2, "temperature": 0}
    with served(fake_engine(hashed_logits)) as client:
        answer = client.post(URL, json=body).json()
    assert answer["usage"]["completion_tokens"] == 2 * new_tokens
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        found = choice["logprobs"]
        assert {len(values) for values in found.values()} == {len(prompt) + new_tokens}
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        for place in range(1, len(prompt)):
            expected = logprob(prompt[:place], prompt[place])
            assert math.isclose(found["token_logprobs"][place], expected, abs_tol=1e-5)
            assert found["top_logprobs"][place][found["tokens"][place]] == found["token_logprobs"][place]
        assert found["text_offset"][: len(prompt)] == list(range(len(prompt)))
        assert choice["finish_reason"] == "length"
        if new_tokens:  # the likeliest was taken
            assert max(found["top_logprobs"][-1].values()) == found["token_logprobs"][-1]


def test_a_token_that_is_no_text_of_its_own_is_named_by_its_bytes() -> None:
    with served(fake_engine(says("é".encode()))) as client:
        choice = client.post(URL, json={"prompt": "a", "logprobs": 1}).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", END]
    assert choice["text"] == "é"


def test_token_ids_come_with_every_token_also_those_without_text() -> None:
    body = {"prompt": "a", "return_token_ids": True}
    with served(fake_engine(says("é".encode()))) as client:
        whole = client.post(URL, json=body).json()["choices"][0]
        chunks = events(client.post(URL, json={**body, "stream": True}).text)
    expected = [*byte_ids("é".encode()), END_ID]
    assert whole["token_ids"] == expected
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[token] for token in expected]


def test_a_special_token_in_a_text_is_text_unless_the_server_allows_it() -> None:
    from q2export.runtime.server.options import ServerOptions

    body = {"prompt": f"a{END}b"}
    for allow, expected in ((False, 0), (True, 1)):
        with served(fake_engine(), ServerOptions(allow_special_tokens=allow)) as client:
            tokens = client.post("/tokenize", json=body).json()["tokens"]
            usage = client.post(URL, json={**body, "max_tokens": 1}).json()["usage"]
        assert tokens.count(END_ID) == expected
        assert usage["prompt_tokens"] == len(tokens)


@pytest.mark.parametrize("form", ["response_format", "structured_outputs"])
def test_structured_output(form: str) -> None:
    schema = {"enum": ["up", "down"]}
    wanted = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        "structured_outputs": {"json": schema},
    }[form]
    body = {"prompt": "a", form: wanted, "temperature": 1, "n": 4, "seed": 0}
    with served(fake_engine(hashed_logits)) as client:
        answer = client.post(URL, json=body).json()
    assert {choice["text"] for choice in answer["choices"]} <= {'"up"', '"down"'}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt[1]"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 512}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "?"}},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    with served(fake_engine(says(b"x"))) as client:
        answer = client.post(URL, json={"prompt": "a", **fields})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
        assert client.post(URL, json={"prompt": "a"}).status_code == 200


def test_tokens_and_back() -> None:
    with served(fake_engine()) as client:
        answer = client.post("/tokenize", json={"prompt": "Straße", "return_token_strs": True}).json()
        back = client.post("/detokenize", json={"tokens": answer["tokens"]}).json()
        info = client.get("/tokenizer_info").json()
        wrong = client.post("/detokenize", json={"tokens": [9999]})
        both = client.post("/tokenize", json={"prompt": "a", "messages": []})
    assert answer["tokens"] == byte_ids("Straße".encode())
    assert (answer["count"], answer["max_model_len"]) == (7, 512)
    assert back == {"prompt": "Straße"}
    assert info["eos_token"] == END
    assert "add_generation_prompt" in info["chat_template"]
    assert (wrong.status_code, both.status_code) == (400, 400)
