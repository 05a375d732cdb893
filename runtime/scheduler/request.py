"""A request as the scheduler sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from q2export.errors import CancelledError, DeadlineError, Q2ExportError
from q2export.runtime.backends.base import Float32Array, Int64Array
from q2export.runtime.results import Timings, TokenEvent
from q2export.runtime.scheduler.generation import ScheduledGeneration
from q2export.runtime.sequence import RunningSequence

_HEADROOM = 64  # tokens


@dataclass(eq=False)
class Request:
    """One request, from its submission to its end.

    Attributes:
        sequence: what is generated.
        generation: what its owner holds.
        priority: the larger ones come first.
        arrival: those of one priority come in this order.
        deadline: on the clock ``time.monotonic``.
        submitted: on ``time.perf_counter``, as the other times.
        cached_prompt_tokens: of the prompt that it did not compute when it began.
        text_tokens: what the prefill has to compute, ``[tokens]``: the prompt, and what was generated before
            the request was put off.
    """

    sequence: RunningSequence
    generation: ScheduledGeneration
    priority: int
    arrival: int
    deadline: float | None
    submitted: float = field(default_factory=lambda: time.perf_counter())
    begun: float | None = None
    prefilled: float | None = None
    first_token: float | None = None
    cached_prompt_tokens: int = 0
    text_tokens: Int64Array = field(init=False)

    def __post_init__(self) -> None:
        self.text_tokens = self.sequence.prompt

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller one goes first."""
        return -self.priority, self.arrival

    @property
    def promised_tokens(self) -> int:
        """Tokens of the KV cache that it must find to be let in: those it has, and some to go on with."""
        left = self.sequence.max_new_tokens - len(self.sequence.token_ids)
        return self.sequence.length + min(left, _HEADROOM)

    def ends(self, now: float) -> bool:
        """Whether it was cancelled, or is late."""
        return self.generation.cancelled or (self.deadline is not None and now >= self.deadline)

    def reason(self) -> Q2ExportError:
        """Which of both, in words."""
        tokens = f"after {len(self.sequence.token_ids)} tokens"
        if self.generation.cancelled:
            return CancelledError(f"the generation was cancelled {tokens}")
        return DeadlineError(
            f"the deadline of the request has passed {tokens}; allow more time or ask for fewer tokens"
        )

    def place(self, _row: int) -> str:
        """Where it stands, for messages about its logits."""
        return f"after token {self.sequence.length - 1}"

    def advance(self, logits: Float32Array) -> TokenEvent:
        """The next token; with the result, if the text ends.

        Raises:
            GenerationError: see :meth:`RunningSequence.advance`.
        """
        computed = time.perf_counter()
        self.prefilled = computed if self.prefilled is None else self.prefilled
        event = self.sequence.advance(logits)
        now = time.perf_counter()
        self.first_token = now if self.first_token is None else self.first_token
        if self.sequence.finish_reason is None:
            return event
        result = self.sequence.result(self._timings(self.prefilled, self.first_token, now))
        return TokenEvent(event.token_id, event.text, result, event.logprobs)

    def _timings(self, prefilled: float, first_token: float, now: float) -> Timings:
        begun = self.submitted if self.begun is None else self.begun
        return Timings(
            prompt_tokens=len(self.sequence.prompt),
            generated_tokens=len(self.sequence.token_ids),
            prefill_seconds=prefilled - begun,
            time_to_first_token=first_token - self.submitted,
            decode_seconds=now - first_token,
            cached_prompt_tokens=self.cached_prompt_tokens,
            queue_seconds=begun - self.submitted,
        )
