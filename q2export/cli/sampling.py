"""Options of ``generate`` and ``chat``, made from their declaration in the runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from q2export.cli.output import format_seconds
from q2export.runtime.options import GenerationOptions

if TYPE_CHECKING:
    from q2export.runtime.results import Timings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def generation_options(function: Decorated) -> Decorated:
    """Add an option for each field of :class:`GenerationOptions`; one that is not given is None, or empty."""
    for each in reversed(dataclasses.fields(GenerationOptions)):
        name, kind = each.name.replace("_", "-"), each.metadata["kind"].type
        several = each.name in ("stop", "logit_bias")
        option = click.option(
            "--sample/--greedy" if each.name == "do_sample" else f"--{name}",
            each.name,
            type=kind,
            is_flag=kind is bool,
            default=None,
            multiple=several,
            callback=_mapping if each.name == "logit_bias" else None,
            metavar="ID=BIAS" if each.name == "logit_bias" else None,
            help=f"{each.metadata['meaning']}{' Repeatable.' if several else ''}",
        )
        function = option(function)
    return function


def _mapping(
    _context: click.Context, _option: click.Parameter, pairs: Sequence[tuple[int, float]]
) -> Mapping[int, float] | None:
    """What was given by ``--logit-bias``, once or several times."""
    return dict(pairs) or None


def check_greedy(given: Mapping[str, object]) -> None:
    """Refuse ``--greedy`` together with what shapes the random choice.

    Raises:
        UsageError: naming both.
    """
    for name in ("temperature", "top_k", "top_p", "min_p"):
        if given["do_sample"] is False and given[name] is not None:
            raise click.UsageError(f"--greedy and --{name.replace('_', '-')} contradict each other")


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
