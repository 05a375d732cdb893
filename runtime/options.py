"""What a caller may ask of generation.

Every class checks itself; an option that makes no sense raises :class:`GenerationError` naming it.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from q2export.errors import GenerationError


def check_integer(name: str, value: object, minimum: int) -> None:
    """Refuse what is not an integer of at least ``minimum``.

    Raises:
        GenerationError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise _refusal(name, f"an integer of at least {minimum}", value)


def _check_number(
    name: str, value: object, low: float, high: float = sys.float_info.max, *, above: bool = False
) -> None:
    """Refuse what is not a number in [low, high], or in (low, high] with ``above``. NaN is in neither."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        upper = "" if high == sys.float_info.max else f" and at most {high:g}"
        raise _refusal(name, f"a number {'above' if above else 'of at least'} {low:g}{upper}", value)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise _refusal(name, "true or false", value)


def _refusal(name: str, expected: str, found: object) -> GenerationError:
    return GenerationError(f"{name} must be {expected}, found {found!r}")


@dataclass(frozen=True)
class SamplingOptions:
    """How one token is chosen from its logits. The defaults choose the likeliest token.

    Attributes:
        do_sample: draw at random; False takes the likeliest token.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: keep the ``top_k`` likeliest tokens (and those equal to the last of them); 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probabilities reach ``top_p``, in (0, 1].
        min_p: drop tokens less likely than ``min_p`` times the likeliest, in [0, 1].
        repetition_penalty: above 1 makes tokens of the prompt and of the text so far less likely.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check_flag("do_sample", self.do_sample)
        _check_number("temperature", self.temperature, 0)
        check_integer("top_k", self.top_k, 0)
        _check_number("top_p", self.top_p, 0, 1, above=True)
        _check_number("min_p", self.min_p, 0, 1)
        _check_number("repetition_penalty", self.repetition_penalty, 0, above=True)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.do_sample or self.temperature == 0


@dataclass(frozen=True)
class GenerationOptions:
    """What a caller asks for, per call; None means the engine's default.

    The attributes are those of :meth:`q2export.runtime.engine.Engine.generate`.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | Sequence[int] | None = None
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        check_integer("min_new_tokens", self.min_new_tokens, 0)
        if self.max_new_tokens is not None:
            check_integer("max_new_tokens", self.max_new_tokens, 1)
            if self.min_new_tokens > self.max_new_tokens:
                most = f"at most max_new_tokens, which is {self.max_new_tokens}"
                raise _refusal("min_new_tokens", most, self.min_new_tokens)
        _check_flag("ignore_eos", self.ignore_eos)
        if not isinstance(self.stop, Sequence) or not all(
            isinstance(s, str) and s for s in self.stop_strings
        ):
            raise _refusal("stop", "a string or a sequence of strings, none of them empty", self.stop)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def seeds(self, rows: int) -> list[int | None]:
        """One seed per row. A single number serves every row, so that a row's text is that of the row alone.

        Raises:
            GenerationError: a seed that is negative or no integer; a sequence whose length is not ``rows``.
        """
        if self.seed is None:
            return [None] * rows
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * rows
        if len(seeds) != rows:
            raise _refusal("seed", f"one integer, or one for each of the {rows} prompts", self.seed)
        for seed in seeds:
            check_integer("seed", seed, 0)
        return [int(seed) for seed in seeds]

    def sampling(self, defaults: SamplingOptions) -> SamplingOptions:
        """The caller's choices over ``defaults``.

        A caller who sets ``temperature``, ``top_k``, ``top_p`` or ``min_p`` but not ``do_sample`` wants to
        sample: dropping the number because the configuration does not sample would be silently wrong.
        """
        shaping = (self.temperature, self.top_k, self.top_p, self.min_p)
        shaped = any(value is not None for value in shaping)
        return SamplingOptions(
            do_sample=(defaults.do_sample or shaped) if self.do_sample is None else self.do_sample,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            repetition_penalty=(
                defaults.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty
            ),
        )
