"""What generation returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from q2export.errors import GenerationError

FinishReason = Literal["stop", "length"]
"""``stop``: an end-of-text token or a stop string; ``length``: ``max_new_tokens``, or the engine is full."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of the probabilities of one place: the log-softmax of the engine's own logits.

    It is taken before biases, processors, penalties and temperature; exponentials are float32, their sum and
    its logarithm float64.

    Attributes:
        token_id: the token chosen.
        logprob: of that.
        top: the likeliest tokens and theirs, the likeliest first; of equals the smaller id first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Timings:
    """Where the time of one sequence went. In a batch, seconds are those of the whole batch.

    Time that a consumer of a stream spends between two tokens is not counted.

    Attributes:
        prompt_tokens: tokens of the prompt.
        generated_tokens: tokens generated, the last one included.
        prefill_seconds: allocating the cache and running the prompt.
        time_to_first_token: seconds from the start of the call to the choice of the first token.
        decode_seconds: seconds from the choice of the first token to that of the last.
        cached_prompt_tokens: tokens of the prompt that were not computed, because another sequence of a
            :class:`~q2export.runtime.scheduler.Scheduler` had them.
        queue_seconds: that it waited for its turn, within the time to the first token.
    """

    prompt_tokens: int
    generated_tokens: int
    prefill_seconds: float
    time_to_first_token: float
    decode_seconds: float
    cached_prompt_tokens: int = 0
    queue_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of prefill, of the tokens that were computed."""
        computed = self.prompt_tokens - self.cached_prompt_tokens
        return computed / self.prefill_seconds if self.prefill_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed of decoding; 0 if there is but one token, which the prefill gave."""
        return (self.generated_tokens - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True)
class GenerationResult:
    """One generated sequence.

    Attributes:
        token_ids: what the engine generated, with the end-of-text token or the tokens of the stop string.
        decoded: the text; None for an engine without a tokenizer. Read it as :attr:`text`.
        finish_reason: see :data:`FinishReason`.
        stop_string: the stop string that ended the text, if one did.
        timings: see :class:`Timings`.
        logprobs: of each token, if the option ``logprobs`` asks for them.
    """

    token_ids: tuple[int, ...]
    decoded: str | None
    finish_reason: FinishReason
    stop_string: str | None
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] | None = None

    @property
    def has_text(self) -> bool:
        """Whether the engine has a tokenizer."""
        return self.decoded is not None

    @property
    def text(self) -> str:
        """The text, without special tokens, cut before the stop string.

        Raises:
            GenerationError: the engine has no tokenizer; see :attr:`has_text`.
        """
        if self.decoded is None:
            raise GenerationError("the engine has no tokenizer, thus no text; read token_ids")
        return self.decoded


@dataclass(frozen=True)
class TokenEvent:
    """One step of a stream.

    Attributes:
        token_id: the token just chosen.
        text: what can now be shown. It is empty while a character is incomplete or a stop string may be
            coming, and without a tokenizer. All of them joined are the result's text.
        result: the whole result, with the last token only.
        logprobs: of the token, if the option ``logprobs`` asks for them.
    """

    token_id: int
    text: str
    result: GenerationResult | None = None
    logprobs: TokenLogprobs | None = None
