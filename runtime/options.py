"""What a caller may ask of generation: each option declared once, with its meaning, range and default.

The keywords of :class:`~q2export.runtime.engine.Engine`, the options of ``q2export generate`` and ``chat``,
and the fields of ``generation_config.json`` that are read, are those of :class:`GenerationOptions`.
"""

from __future__ import annotations

import dataclasses
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from q2export.errors import GenerationError
from q2export.strict.suggest import nearest

if TYPE_CHECKING:
    from typing import Self

Documented = TypeVar("Documented", bound=type)


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Attributes:
        type: what a command line parses.
        expected: the values in words, for messages.
        accepts: whether a value is one of them.
        low, high: of a number, the smallest and largest; ``above``: ``low`` itself is not one of them.
    """

    type: Callable[[str], Any]
    expected: str
    accepts: Callable[[Any], bool]
    low: float = 0
    high: float = sys.float_info.max
    above: bool = False

    def check(self, name: str, value: object) -> None:
        """Refuse a value that is not of this kind.

        Raises:
            GenerationError: naming the option.
        """
        if not self.accepts(value):
            raise GenerationError(f"{name} must be {self.expected}, found {value!r}")


def _is_integer(value: Any, minimum: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral) and int(value) >= minimum


def _is_strings(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, Sequence) and all(isinstance(text, str) and text for text in texts)


def _is_seeds(value: Any) -> bool:
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return all(_is_integer(seed, 0) for seed in (value if several else [value]))


def _is_biases(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_integer(token, 0) and _BIAS.accepts(bias) for token, bias in value.items()
    )


def _token_and_bias(text: str) -> tuple[int, float]:
    """``ID=BIAS``, as a command line has it."""
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def _integer(minimum: int, most: int | None = None) -> Kind:
    def accepts(value: Any) -> bool:
        return _is_integer(value, minimum) and (most is None or value <= most)

    upper = "" if most is None else f" and at most {most}"
    high = sys.float_info.max if most is None else most
    return Kind(int, f"an integer of at least {minimum}{upper}", accepts, low=minimum, high=high)


def _number(low: float, high: float = sys.float_info.max, *, above: bool = False) -> Kind:
    """A number in [low, high], or in (low, high] with ``above``. NaN is in neither."""

    def accepts(value: Any) -> bool:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and bool(low <= value <= high) and not (above and value == low)

    upper = "" if high == sys.float_info.max else f" and at most {high:g}"
    expected = f"a number {'above' if above else 'of at least'} {low:g}{upper}"
    return Kind(float, expected, accepts, low, high, above)


_FLAG = Kind(bool, "true or false", lambda value: isinstance(value, bool))
_SEED = Kind(int, "an integer of at least 0, or a sequence of one for each prompt", _is_seeds)
_STRINGS = Kind(str, "a string or a sequence of strings, none of them empty", _is_strings)
_BIAS = _number(-100, 100)
_BIASES = Kind(
    _token_and_bias, "a mapping of token ids to numbers of -100 to 100", _is_biases, _BIAS.low, _BIAS.high
)


def _option(default: Any, kind: Kind, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "meaning": meaning})


def _documented(options: Documented) -> Documented:
    """Write the meaning of each field into the docstring."""
    lines = [f"        {each.name}: {each.metadata['meaning']}" for each in dataclasses.fields(options)]
    options.__doc__ = "\n".join([f"{options.__doc__}\n\n    Attributes:", *lines, ""])
    return options


@_documented
@dataclass(frozen=True)
class GenerationOptions:
    """How a text is generated. The defaults are those of transformers, which take the likeliest token.

    A value out of its range raises a :class:`~q2export.errors.GenerationError` that names it.
    """

    max_new_tokens: int | None = _option(
        None,
        _integer(1),
        "Most tokens to generate; 512 where generation_config.json does not say, cut to what fits.",
    )
    min_new_tokens: int = _option(
        0,
        _integer(0),
        "Neither an end-of-text token nor a stop string ends the text before this many tokens.",
    )
    do_sample: bool = _option(
        False,
        _FLAG,
        "Draw tokens at random, not the likeliest; implied by temperature, top_k, top_p and min_p.",
    )
    temperature: float = _option(1.0, _number(0), "Divides the logits; 0 takes the likeliest token.")
    top_k: int = _option(
        50,
        _integer(0),
        "Draw from this many of the likeliest tokens; 0 draws from all. As in transformers, 50 where "
        "generation_config.json does not give it.",
    )
    top_p: float = _option(
        1.0, _number(0, 1, above=True), "Draw from the fewest likeliest tokens that reach this probability."
    )
    min_p: float = _option(0.0, _number(0, 1), "Drop tokens less likely than this share of the likeliest.")
    repetition_penalty: float = _option(
        1.0,
        _number(0, above=True),
        "Above 1, tokens of the prompt and of the text so far become less likely.",
    )
    presence_penalty: float = _option(
        0.0, _number(-2, 2), "Taken from the logit of each token that was generated before."
    )
    frequency_penalty: float = _option(
        0.0,
        _number(-2, 2),
        "Taken from the logit of a token as many times as it was generated before.",
    )
    logit_bias: Mapping[int, float] | None = _option(
        None, _BIASES, "Added to the logits of these tokens, by id, before everything else."
    )
    logprobs: int | None = _option(
        None,
        _integer(0, 20),
        "Return the log probability of each token, and of so many of the likeliest in its place; of the "
        "engine's logits as they are, before biases, penalties and temperature.",
    )
    seed: int | Sequence[int] | None = _option(
        None, _SEED, "Random seed; the same seed, prompt and engine give the same tokens."
    )
    stop: str | Sequence[str] = _option(
        (), _STRINGS, "End the text before this string; the text of a special token stands for that token."
    )
    ignore_eos: bool = _option(False, _FLAG, "Go on after end-of-text tokens.")

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None or each.default is not None:
                each.metadata["kind"].check(each.name, value)

    def updated(self, given: Mapping[str, Any]) -> Self:
        """These options with the values a caller gives; None counts as not given.

        ``temperature``, ``top_k``, ``top_p`` or ``min_p`` without ``do_sample`` asks to sample: dropping the
        number where the defaults do not sample would be silently wrong.

        Raises:
            GenerationError: a name that is no option, or a value out of its range.
        """
        names = [each.name for each in dataclasses.fields(self)]
        for name in given:
            if name not in names:
                raise GenerationError(f"no option {name!r}{nearest(name, names)}")
        values = {name: value for name, value in given.items() if value is not None}
        if values.keys() & {"temperature", "top_k", "top_p", "min_p"}:
            values.setdefault("do_sample", True)
        options = dataclasses.replace(self, **values)
        most = values.get("max_new_tokens")
        if most is not None and options.min_new_tokens > most:
            raise GenerationError(
                f"min_new_tokens must be at most max_new_tokens, which is {most}, "
                f"found {options.min_new_tokens}"
            )
        return options

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return not self.do_sample or self.temperature == 0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def seeds(self, count: int) -> list[int | None]:
        """One seed per prompt. A single number serves each, so that a text does not depend on the batch.

        Raises:
            GenerationError: a sequence whose length is not ``count``.
        """
        if self.seed is None:
            return [None] * count
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * count
        if len(seeds) != count:
            raise GenerationError(
                f"seed must be one integer, or one for each of the {count} prompts, found {self.seed!r}"
            )
        return [int(seed) for seed in seeds]


class OptionKeywords(TypedDict, total=False):
    """The fields of :class:`GenerationOptions` as keywords; None, as leaving one out, takes the default."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
