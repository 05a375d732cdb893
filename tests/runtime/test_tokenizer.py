from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.detokenizer import IncrementalDetokenizer
from q2export.runtime.tokenizer import Tokenizer, load_tokenizer
from tests.runtime.fakes import END, START, byte_ids, byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = [
    "",
    "Hello, world!\n",
    "naïve café — 你好世界 🚀👩‍🚀",
    "a\u0301 e\u0301",
    "  def f(x):\n\treturn x\r\n",
    "12345 '\u2019s",
]


TOKENIZER = byte_tokenizer([("a", "b"), ("ab", "c")])


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_special_tokens() -> None:
    ids = TOKENIZER.encode(f"hi{END}")
    assert ids[-1] == TOKENIZER.special_token_id(END) == 258
    assert TOKENIZER.special_token_id("hi") is None
    assert TOKENIZER.decode(ids) == "hi"
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == f"hi{END}"
    assert TOKENIZER.size == 260
    assert TOKENIZER.encode(START) == [259]


@pytest.mark.parametrize("text", ["\ud83d", "x\udfff", 3, None, b"x", ["x"]], ids=ascii)
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(GenerationError, match="text must be a string of Unicode characters, found "):
        TOKENIZER.encode(text)


def stream(ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(TOKENIZER.decode)
    return [*(detokenizer.feed(i) for i in ids), detokenizer.flush()]


def test_a_character_spread_over_tokens_is_shown_once_whole() -> None:
    rocket = byte_ids("🚀".encode())
    assert stream([*rocket, *TOKENIZER.encode("!")]) == ["", "", "", "🚀", "!", ""]


def test_an_incomplete_character_at_the_end_is_one_replacement_character() -> None:
    assert stream(byte_ids(b"x\xf0\x9f\x9a")) == ["x", "", "", "", "\ufffd"]


def test_special_tokens_between_the_bytes_of_a_character_show_nothing() -> None:
    e_acute = byte_ids("é".encode())
    assert stream([e_acute[0], 258, e_acute[1]]) == ["", "", "é", ""]


@given(st.lists(st.integers(0, 259), max_size=30))
@example(byte_ids(b"\xef\xbf\xbd"))  # a true U+FFFD in the text
@example(byte_ids(b"\xf0\x80\xf0\x9f\xe4\xbd\xffA"))
def test_streamed_text_equals_the_decoding_of_all_tokens(ids: list[int]) -> None:
    assert "".join(stream(ids)) == TOKENIZER.decode(ids)


@given(st.text(max_size=12))
def test_valid_text_never_shows_a_replacement_character_early(text: str) -> None:
    detokenizer = IncrementalDetokenizer(TOKENIZER.decode)
    shown = ""
    for token in byte_ids(text.encode()):
        shown += detokenizer.feed(token)
        assert text.startswith(shown)
    assert shown + detokenizer.flush() == text


def save(folder: Path, config: object) -> Path:
    TOKENIZER._core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_load(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    config = {
        "eos_token": {"content": END, "lstrip": False},
        "bos_token": None,
        "pad_token": START,
        "added_tokens_decoder": {"258": {"content": END}},
    }
    tokenizer = load_tokenizer(save(tmp_path, config))
    assert tokenizer is not None
    assert tokenizer.special_tokens == {"eos_token": END, "pad_token": START}
    assert tokenizer.encode("abcab") == TOKENIZER.encode("abcab")


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    save(tmp_path, {})
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    cut = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"truncation": cut}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert len(tokenizer.encode("0123456789")) == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": "<|absent|>"}, r"eos_token '<\|absent\|>' is not a token of tokenizer.json"),
        ({"eos_token": 3}, "eos_token must be a token's text, found 3"),
        ({"added_tokens_decoder": {"7": {"content": END}}}, "gives '<|end|>' the id 7, .* gives it 258"),
        ({"added_tokens_decoder": {"300": {"content": "x" * 9}}}, "does not have it"),
        ({"added_tokens_decoder": [1]}, "must be an object"),
        ([], "expected a JSON object"),
    ],
    ids=str,
)
def test_files_that_disagree_are_refused(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("|end|", r"\|end\|")):
        load_tokenizer(save(tmp_path, config))


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    save(tmp_path, {})
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["decoder"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"decoder must be ByteLevel.*found Metaspace"):
        load_tokenizer(tmp_path)
    path.write_text('{"model": 3}')
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nHi<|im_end|>\n"])
def test_real_qwen2_tokenizer_encodes_as_transformers(
    text: str, qwen2_tokenizer: Tokenizer, qwen2_reference: PreTrainedTokenizerBase
) -> None:
    assert qwen2_tokenizer.size == 151_646
    ids = qwen2_tokenizer.encode(text)
    assert ids == qwen2_reference.encode(text)
    assert qwen2_tokenizer.decode(ids) == qwen2_reference.decode(ids, skip_special_tokens=True)
