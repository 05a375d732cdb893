"""The command line that repeats a comparison, from where its caller stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from q2export.contracts.commands import command_line

GREEDY_TOKENS = 64
"""Tokens that ``verify`` generates after each prompt unless asked otherwise."""


def verify_command(
    package: str | Path,
    model: str | Path,
    *,
    revision: str | None = None,
    prompts: Sequence[str] | None = None,
    text: str | Path | None = None,
    greedy_tokens: int = GREEDY_TOKENS,
    threads: int | None = None,
) -> str:
    """The ``q2export verify`` that does what these arguments of :func:`q2export.verify` do.

    Empty where ``text`` is the text itself, which no option takes.
    """
    if isinstance(text, str):
        return ""
    words: list[str | Path] = ["verify", Path(package), "--model"]
    words.append(Path(model) if Path(model).is_dir() else str(model))
    words += [] if revision is None else ["--revision", revision]
    for prompt in prompts or ():
        words += ["--prompt", prompt]
    words += [] if text is None else ["--text", text]
    words += [] if greedy_tokens == GREEDY_TOKENS else ["--greedy-tokens", str(greedy_tokens)]
    words += [] if threads is None else ["--threads", str(threads)]
    return command_line(*words)
