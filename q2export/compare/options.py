"""What ``verify`` is asked for, and the command line that asks for it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q2export.contracts.commands import command_line

GREEDY_TOKENS = 64
"""Tokens that ``verify`` generates after each prompt unless asked otherwise."""


@dataclass(frozen=True)
class VerifyOptions:
    """The options of ``q2export.verify``, by its names; what they mean is said there."""

    revision: str | None = None
    prompts: Sequence[str] | None = None
    text: str | Path | None = None
    greedy_tokens: int = GREEDY_TOKENS
    threads: int | None = None

    def command(self, package: str | Path, model: str | Path) -> str:
        """The ``q2export verify`` that repeats this; empty where ``text`` is no file: no option takes it."""
        if isinstance(self.text, str):
            return ""
        words: list[str | Path] = ["verify", Path(package), "--model"]
        words.append(Path(model) if Path(model).is_dir() else str(model))
        words += [] if self.revision is None else ["--revision", self.revision]
        for prompt in self.prompts or ():
            words += ["--prompt", prompt]
        words += [] if self.text is None else ["--text", self.text]
        words += [] if self.greedy_tokens == GREEDY_TOKENS else ["--greedy-tokens", str(self.greedy_tokens)]
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        return command_line(*words)
