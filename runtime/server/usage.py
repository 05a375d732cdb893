"""Counting the tokens of a request, as OpenAI bills them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from q2export.runtime.results import TokenEvent


@dataclass
class Usage:
    """Tokens of one request.

    Attributes:
        prompt: of its prompts, each counted once however many texts continue it.
        generated: of all its texts, what ended them included.
        cached: of the prompts, what was not computed again.
    """

    prompt: int
    generated: int = 0
    cached: int = 0

    def add(self, event: TokenEvent) -> None:
        """Count a token."""
        self.generated += 1
        if event.result is not None:
            self.cached = max(self.cached, event.result.timings.cached_prompt_tokens)

    def body(self) -> dict[str, Any]:
        """In the shape of OpenAI's."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": min(self.cached, self.prompt)},
        }
