"""Options of ``generate`` and ``chat``: how long to go on, and how the next token is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from q2export.cli.output import format_seconds

if TYPE_CHECKING:
    from q2export.runtime.engine import Engine
    from q2export.runtime.results import Timings, TokenEvent

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--max-new-tokens", type=int, help="Most tokens to generate."),
    click.option("--greedy", is_flag=True, help="Always take the likeliest token."),
    click.option("--temperature", type=float, help="Divides the logits; 0 takes the likeliest token."),
    click.option("--top-k", type=int, help="Keep this many of the likeliest tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep the fewest likeliest tokens that reach this probability."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this share of the likeliest."),
    click.option(
        "--repetition-penalty", type=float, help="Above 1, tokens that occurred become less likely."
    ),
    click.option("--seed", type=int, help="Of the random draws."),
)


def sampling_options(function: Decorated) -> Decorated:
    """Add the options of :class:`Sampling`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@dataclass(frozen=True)
class Sampling:
    """The values of :func:`sampling_options`; None leaves the choice to the engine."""

    max_new_tokens: int | None
    greedy: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "top_p", "min_p"):
            if self.greedy and getattr(self, name) is not None:
                raise click.UsageError(f"--greedy and --{name.replace('_', '-')} contradict each other")

    def stream(
        self,
        engine: Engine,
        prompt: str | Sequence[int],
        *,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Iterator[TokenEvent]:
        """Generate with these values; see :meth:`q2export.runtime.engine.Engine.stream`."""
        return engine.stream(
            prompt,
            max_new_tokens=self.max_new_tokens,
            do_sample=False if self.greedy else None,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=stop,
            ignore_eos=ignore_eos,
        )


def timings_text(timings: Timings) -> str:
    """One line: tokens, seconds and tokens/s of prefill and decode."""
    prefill = (
        f"prompt {timings.prompt_tokens} tokens in {format_seconds(timings.prefill_seconds)} "
        f"({timings.prompt_tokens_per_second:.0f} tokens/s)"
    )
    decode = (
        f"generated {timings.generated_tokens} tokens in {format_seconds(timings.decode_seconds)} "
        f"({timings.decode_tokens_per_second:.1f} tokens/s)"
    )
    return f"{prefill}, {decode}"
