"""Texts that tokenizers stumble over."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

# First and last code points of scripts, symbols and marks, with weights that make each text of few of them.
_BLOCKS = (
    (0x20, 0x7E),
    (0x00, 0x1F),
    (0x80, 0xFF),
    (0x100, 0x24F),
    (0x300, 0x36F),
    (0x370, 0x3FF),
    (0x400, 0x52F),
    (0x590, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0xDFF),
    (0xE00, 0xFFF),
    (0x1100, 0x11FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x20A0, 0x214F),
    (0x2150, 0x218F),
    (0x2460, 0x24FF),
    (0x3000, 0x30FF),
    (0x3131, 0x318E),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7FF),
    (0xE000, 0xE0FF),
    (0xF900, 0xFAFF),
    (0xFB00, 0xFDFF),
    (0xFE00, 0xFFFF),
    (0x10000, 0x1FFFF),
    (0x1D000, 0x1D7FF),
    (0x1F300, 0x1FAFF),
    (0x20000, 0x2FFFF),
    (0xE0000, 0xE01EF),
    (0xD800 - 256, 0x10FFFF),
)
_PIECES = (
    *("'s", "'LL", "'\u017f", "'Re", "'vE", "'D", "'x", "''t", "\u2019s"),
    *(
        " ",
        "  ",
        " " * 17,
        "\t",
        "\n",
        "\r\n",
        "\n\n \n",
        " \n ",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\u0085",
        "\x00",
    ),
    *("hello", "Hello", " world", "the", "1234567890", "3.14", "a" * 40, "==", "!!!\n\n", "http://", "_"),
    *(
        "\u0301",
        "\u0323\u0302",
        "e\u0301",
        "\u1100\u1161\u11a8",
        "\uac00\u11a8",
        "\u212b",
        "\u0344",
        "\u0958",
    ),
    *("\U0001f680", "\U0001f469\u200d\U0001f680", "\u2764\ufe0f", "\U0001f1e9\U0001f1ea", "\u4f60\u597d"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "end|>", "\ufffd", "\ufeff"),
)


def texts(count: int, seed: int = 0) -> Iterator[str]:
    """Texts of all scripts, marks, spaces, contractions, special tokens; the same ones for the same seed."""
    rng = random.Random(seed)
    for number in range(count):
        if number % 50 == 0:
            yield rng.choice(_PIECES) * rng.randrange(1, 400)
            continue
        blocks = rng.sample(_BLOCKS, rng.randrange(1, 4))
        yield "".join(_piece(rng, blocks) for _ in range(rng.randrange(40)))


def _piece(rng: random.Random, blocks: Sequence[tuple[int, int]]) -> str:
    if rng.random() < 0.3:
        return rng.choice(_PIECES)
    code = rng.randint(*rng.choice(blocks))
    return "?" if 0xD800 <= code < 0xE000 else chr(code)
