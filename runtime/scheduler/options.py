"""What a scheduler is told, and what it tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from q2export.errors import OptionError


@dataclass(frozen=True)
class SchedulerOptions:
    """How a scheduler shares an engine. The defaults suit a service that has the machine to itself.

    Attributes:
        rows: sequences that run at once; None is as many as the engine takes in a batch.
        queue_limit: requests that may wait beside those that run.
        capacity: tokens a sequence may hold, prompt and generated; None is the engine's capacity.
        kv_tokens: tokens in the KV cache, of sequences that run and of prefixes kept for later; None is what
            ``memory_share`` of the memory that is free holds, on a GPU what was built for.
        memory_share: above 0, at most 1; several schedulers on one machine want less each.
        prefix_bytes: of those, for prefixes of sequences that have ended; None is what the others leave.
        token_interval: seconds between two tokens of a text while prompts are computed. Prompts are cut so
            that it holds, but never get less time than the tokens do, and more where more of them wait.
        speculate: tokens guessed from the text itself where one sequence runs alone; 0 guesses none. It
            changes no text.

    Raises:
        OptionError: a value out of its range.
    """

    rows: int | None = None
    queue_limit: int = 256
    capacity: int | None = None
    kv_tokens: int | None = None
    memory_share: float = 0.5
    prefix_bytes: int | None = None
    token_interval: float = 0.2
    speculate: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("rows", 1),
            ("queue_limit", 0),
            ("capacity", 2),
            ("kv_tokens", 2),
            ("prefix_bytes", 0),
            ("speculate", 0),
        ):
            value = getattr(self, name)
            optional = name in ("rows", "capacity", "kv_tokens", "prefix_bytes")
            if value is None and optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                expected = f"an integer of at least {least}{' or None' if optional else ''}"
                raise OptionError(name, f"must be {expected}, found {value!r}")
        interval: object = self.token_interval
        real = isinstance(interval, (int, float)) and not isinstance(interval, bool)
        if not real or not 0 <= self.token_interval < math.inf:
            raise OptionError("token_interval", f"must be seconds of at least 0, found {interval!r}")
        share: object = self.memory_share
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise OptionError("memory_share", f"must be above 0 and at most 1, found {share!r}")


@dataclass
class Counts:
    """What was done so far; see :class:`SchedulerStatistics`."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_prompt_tokens: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(frozen=True)
class SchedulerStatistics:
    """Where a scheduler stands, and what it has done since it was made.

    Attributes:
        waiting: requests that do not run yet, or were put off.
        running: requests whose prompt or text is being computed.
        rows: most that run at once.
        kv_tokens_used: tokens of running sequences in the KV cache.
        kv_tokens_retained: tokens of prefixes kept for later.
        kv_tokens: most of both together.
        steps: calls of the engine.
        prompt_tokens: computed.
        generated_tokens: chosen.
        cached_prompt_tokens: not computed, because another sequence had them.
        prefix_hits: requests that had such tokens.
        preemptions: of running sequences, whose tokens were computed again later.
        finished: requests that came to their end.
        failed: requests that ended with an error, deadlines among them.
        cancelled: requests that were cancelled.
    """

    waiting: int
    running: int
    rows: int
    kv_tokens_used: int
    kv_tokens_retained: int
    kv_tokens: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    cached_prompt_tokens: int
    prefix_hits: int
    preemptions: int
    finished: int
    failed: int
    cancelled: int
