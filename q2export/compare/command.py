"""The command line that repeats a comparison, from where its caller stands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

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

    Paths stay as they were given, so that the command works in the same folder. Empty where ``text`` is the
    text itself, which no option takes.
    """
    if isinstance(text, str):
        return ""
    words = ["q2export", "verify", str(package), "--model", str(model)]
    words += [] if revision is None else ["--revision", revision]
    for prompt in prompts or ():
        words += ["--prompt", prompt]
    words += [] if text is None else ["--text", str(text)]
    words += [] if greedy_tokens == GREEDY_TOKENS else ["--greedy-tokens", str(greedy_tokens)]
    words += [] if threads is None else ["--threads", str(threads)]
    return shlex.join(words)
