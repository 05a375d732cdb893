"""The text that quality is measured on, as token ids in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q2export.compare.quality import sample_text
from q2export.errors import ParityError

BUILD_TOKENS = 512
"""Tokens of the text that a build measures on."""

MAX_TOKENS = 4096
"""Tokens of the text that are used where somebody asks for a report."""

WINDOW_TOKENS = 256
"""Tokens of one window: long enough for context, short enough that two windows of logits fit in memory."""


def windows_of(tokens: Sequence[int], at_most: int, length: int = WINDOW_TOKENS) -> list[list[int]]:
    """Cut the first ``at_most`` tokens of a text into pieces of at least two tokens each.

    Raises:
        ParityError: the text has fewer than two tokens, or a window would.
    """
    if length < 2:
        raise ParityError(f"a window of {length} tokens predicts nothing; expected at least 2")
    used = list(tokens[:at_most])
    found = [used[start : start + length] for start in range(0, len(used), length)]
    if found and len(found[-1]) < 2:
        found.pop()
    if not found:
        raise ParityError(f"the text has {len(tokens)} tokens; perplexity needs at least 2")
    return found


@dataclass(frozen=True)
class QualityText:
    """A text as token ids, cut into windows."""

    name: str
    windows: list[list[int]]


def quality_windows(folder: Path, text: str | Path | None, at_most: int, longest: int) -> QualityText:
    """Tokenize a text, or the built-in one.

    Args:
        folder: whose tokenizer is used.
        text: the text, or a UTF-8 file of it; None takes the built-in text.
        at_most: tokens to use.
        longest: tokens a window may have: the capacity of an engine.

    Raises:
        ParityError: there is no tokenizer, or the text cannot be read or is too short.
    """
    from q2export.runtime.tokenizer import TOKENIZER_FILE, load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ParityError(
            f"{folder}: holds no {TOKENIZER_FILE}, and quality is measured on text; add the tokenizer"
        )
    if text is None:
        words, name = sample_text.TEXT, sample_text.NAME
    else:
        words, name = words_of(text), text.name if isinstance(text, Path) else "the given text"
    return QualityText(name, windows_of(tokenizer.encode(words), at_most, min(WINDOW_TOKENS, longest)))


def words_of(text: str | Path) -> str:
    """The text itself, or what the file holds.

    Raises:
        ParityError: the file cannot be read, or is not UTF-8.
    """
    if isinstance(text, str):
        return text
    try:
        return text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParityError(f"{text}: cannot be read as UTF-8 text: {error}") from error
