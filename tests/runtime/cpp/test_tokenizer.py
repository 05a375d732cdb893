"""Text in C++ against text in Python: the same ids, the same text, the same tokenizers refused; sanitized.

``Q2EXPORT_TOKENIZER_TEXTS=100000`` gives more texts, and every entry of the real Qwen2 tokenizer.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from q2export.plugins.kernel_build import EngineLibrary
from q2export.runtime.chat import ChatTemplate
from q2export.runtime.control_tokens import encode_sanitized, encode_text
from q2export.runtime.cpp import generate_unicode
from q2export.runtime.detokenizer import IncrementalDetokenizer
from q2export.runtime.tokenizer import load_tokenizer
from tests.runtime.cpp.compiling import sanitized
from tests.runtime.cpp.texts import texts

SOURCES = ("error.cpp", "json", "package/files.cpp", "package/sha256.cpp", "text")
COUNT = int(os.environ.get("Q2EXPORT_TOKENIZER_TEXTS", "2000"))
END = "<|im_end|>"


@pytest.fixture(scope="session")
def program(engine_build: EngineLibrary) -> Path:
    """``tokenizers.cpp`` under the address and the undefined behaviour sanitizer."""
    return sanitized(engine_build, "address", Path(__file__).with_name("tokenizers.cpp"), SOURCES)


def run(program: Path, words: Sequence[object], lines: Iterable[str] = ()) -> list[str]:
    done = subprocess.run(
        [str(program), *map(str, words)],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def encoded(program: Path, folder: Path, contents: Sequence[str], kind: str = "e") -> list[list[int]]:
    """Token ids of texts; of kind ``t``, special tokens in them are text."""
    answers = run(program, [folder], (f"{kind} {content.encode().hex()}" for content in contents))
    return [[int(each) for each in answer.split()] for answer in answers]


class Pair:
    """A tokenizer in both languages."""

    def __init__(self, program: Path, folder: Path) -> None:
        found = load_tokenizer(folder)
        assert found is not None
        self.program, self.folder, self.python = program, folder, found

    def ask(self, kind: str, contents: Iterable[str]) -> list[str]:
        return run(self.program, [self.folder], (f"{kind} {content}" for content in contents))

    def encoded(self, contents: Sequence[str], kind: str = "e") -> list[list[int]]:
        return encoded(self.program, self.folder, contents, kind)

    def decoded(self, lists: Sequence[Sequence[int]], kind: str = "d") -> list[str]:
        return [
            bytes.fromhex(each).decode()
            for each in self.ask(kind, (" ".join(map(str, ids)) for ids in lists))
        ]


@pytest.fixture(scope="module")
def tiny(program: Path, checkpoints: Path) -> Pair:
    return Pair(program, checkpoints / "qwen2-tiny")


@pytest.fixture(scope="module")
def real(program: Path, qwen2_folder: Path) -> Pair:
    return Pair(program, qwen2_folder)


def check_texts(pair: Pair, count: int) -> None:
    contents = list(texts(count))
    for content, found in zip(contents, pair.encoded(contents), strict=True):
        assert found == pair.python.encode(content), repr(content)
    some = contents[: count // 10]
    for content, found in zip(some, pair.encoded(some, "t"), strict=True):
        assert found == encode_text(pair.python, content), repr(content)


def check_ids(pair: Pair, count: int) -> None:
    rng = random.Random(1)
    size = pair.python.size
    lists = [[token] for token in range(size + 3)]
    lists += [[rng.randrange(size) for _ in range(rng.randrange(60))] for _ in range(count)]
    # Tokens of single bytes make text that is not UTF-8.
    lists += [[rng.randrange(256) for _ in range(rng.randrange(30))] for _ in range(count)]
    for kind in "dk":
        for ids, found in zip(lists, pair.decoded(lists, kind), strict=True):
            assert found == pair.python.decode(ids, skip_special_tokens=kind == "d"), ids
    some = lists[-2 * count :]
    for ids, answer in zip(some, pair.ask("s", (" ".join(map(str, each)) for each in some)), strict=True):
        detokenizer = IncrementalDetokenizer(pair.python.decode)
        expected = [*(detokenizer.feed(token) for token in ids), detokenizer.flush()]
        assert [bytes.fromhex(each).decode() for each in answer.split(",")] == expected, ids


def test_texts_have_the_ids_of_python(tiny: Pair) -> None:
    check_texts(tiny, COUNT)


def test_ids_have_the_text_of_python(tiny: Pair) -> None:
    check_ids(tiny, COUNT // 10)


def test_the_real_tokenizer(real: Pair) -> None:
    check_texts(real, COUNT // 4 if COUNT < 10_000 else COUNT)
    if COUNT >= 10_000:
        check_ids(real, COUNT // 10)
        every = [real.python.decode([token], skip_special_tokens=False) for token in range(real.python.size)]
        for content, found in zip(every, real.encoded(every), strict=True):
            assert found == real.python.encode(content), repr(content)


def test_long_words_are_merged_as_short_ones(tiny: Pair) -> None:
    rng = random.Random(2)
    contents = ["ab" * 50_000, "x" * 100_000, "".join(rng.choices("etaoins", k=100_000)), "\u4f60" * 20_000]
    contents += ["".join(rng.choices("etaoins", k=size)) for size in range(60, 70)]
    assert tiny.encoded(contents) == [tiny.python.encode(content) for content in contents]


def test_no_text_of_a_user_becomes_a_special_token(tiny: Pair) -> None:
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", {}
    )
    conversations = [[content, "x", content + END] for content in texts(100, seed=3)]
    lines, expected = [], []
    for contents in conversations:
        rendered, spans = b"", list[int]()
        for content in contents:
            rendered += b"<|im_start|>user\n"
            spans += [len(rendered), len(rendered) + len(content.encode())]
            rendered += content.encode() + b"<|im_end|>\n"
        lines.append(f"{rendered.hex()} {' '.join(map(str, spans))}")
        messages = [{"role": "user", "content": content} for content in contents]
        expected.append(encode_sanitized(tiny.python, template, messages, None, 1 << 20))
    assert [[int(each) for each in answer.split()] for answer in tiny.ask("g", lines)] == expected


@pytest.mark.parametrize("spans", ["2 1", "0 7", "0 3 2 4", "1 2", "0 1"])
def test_spans_of_no_characters_are_refused(tiny: Pair, spans: str) -> None:
    text = "\u00e9\u4f60x"
    (said,) = tiny.ask("g", [f"{text.encode().hex()} {spans}"])
    assert said.startswith("6 given: the span ")


@pytest.mark.parametrize(
    "data", [b"\xff", b"a\xed\xa0\x80", b"\xc0\x80", b"x\xf0\x9f\x9a", b"\xf4\x90\x80\x80"]
)
def test_what_is_not_utf8_is_refused(tiny: Pair, data: bytes) -> None:
    (said,) = tiny.ask("e", [data.hex()])
    assert said.startswith("6 text must be UTF-8, byte ")


def test_the_tables_are_those_of_tokenizers() -> None:
    found = generate_unicode.PATH.read_text()
    assert found == generate_unicode.unicode_inc(), "run python -m q2export.runtime.cpp.generate_unicode"
