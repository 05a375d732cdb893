"""``q2export bench``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_seconds, print_json

if TYPE_CHECKING:
    from q2export.runtime.engine import Engine


@dataclass(frozen=True)
class Workload:
    """What is measured: ``batch`` prompts of random tokens, and how often."""

    prompt_tokens: int
    new_tokens: int
    batch: int
    repeat: int
    warmup: int

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Random ids, the same at every call."""
        draw = random.Random(0)
        return [[draw.randrange(vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.batch)]

    def document(self, package: Path, threads: int | None) -> dict[str, object]:
        """What every JSON result begins with."""
        return {
            "package": str(package),
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "batch": self.batch,
            "threads": threads,
        }


@dataclass(frozen=True)
class Measurement:
    """One call of ``generate_batch``: seconds of prefill and of all decoding steps."""

    prefill_seconds: float
    decode_seconds: float


@click.command()
@options.package
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Length of each prompt.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(min=2),
    default=65,
    show_default=True,
    help="Tokens to generate after each prompt; prefill gives the first.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Batch size.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=5, show_default=True, help="Number of measured runs."
)
@click.option(
    "--warmup", type=click.IntRange(min=0), default=1, show_default=True, help="Number of runs before those."
)
@click.option(
    "--profile-ops", is_flag=True, help="Show where the time goes, by operator, instead (ONNX Runtime only)."
)
@options.threads
@options.json_output
def command(
    package: Path,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    repeat: int,
    warmup: int,
    profile_ops: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure prefill and decode speed of an engine.

    Prompts are random token ids from a fixed seed. Shown are the median, the slowest and the fastest run, in
    tokens/s of the whole batch.

    With --profile-ops, ONNX Runtime's profiler tells how long each node takes, prefill and decode apart. The
    profiler takes time itself: trust the shares, and measure speed without it.
    """
    from q2export import api

    work = Workload(prompt_tokens, new_tokens, batch, repeat, warmup)
    if profile_ops:
        from q2export.cli.bench_ops import show_profile

        show_profile(package, work, threads=threads, as_json=as_json)
        return
    start = time.perf_counter()
    engine = api.load(package, threads=threads)
    load_seconds = time.perf_counter() - start
    prompts = work.prompts(engine.backend.vocab_size)
    runs = [_run(engine, prompts, new_tokens) for _ in range(warmup + repeat)][warmup:]
    prefill = _rates(batch * prompt_tokens, (run.prefill_seconds for run in runs))
    decode = _rates(batch * (new_tokens - 1), (run.decode_seconds for run in runs))
    if as_json:
        print_json(
            {
                **work.document(package, threads),
                "load_seconds": load_seconds,
                "prefill_tokens_per_second": prefill,
                "decode_tokens_per_second": decode,
                "runs": [asdict(run) for run in runs],
            }
        )
        return
    rows = [
        ("", "tokens/s", "slowest", "fastest", ""),
        ("prefill", *_cells(prefill), f"{prompt_tokens} tokens, batch {batch}"),
        ("decode", *_cells(decode), f"{new_tokens - 1} steps, batch {batch}"),
        ("load", format_seconds(load_seconds)),
    ]
    click.echo(aligned(rows, right=(1, 2, 3)))


def _run(engine: Engine, prompts: list[list[int]], new_tokens: int) -> Measurement:
    """Greedy generation that no end-of-text token ends: every run does the same work."""
    results = engine.generate_batch(prompts, max_new_tokens=new_tokens, do_sample=False, ignore_eos=True)
    return Measurement(results[0].timings.prefill_seconds, results[0].timings.decode_seconds)


def _rates(tokens: int, seconds: Iterable[float]) -> dict[str, float]:
    rates = sorted(tokens / each for each in seconds)
    return {"median": median(rates), "slowest": rates[0], "fastest": rates[-1]}


def _cells(rates: dict[str, Any]) -> list[str]:
    return [f"{rates[name]:.1f}" for name in ("median", "slowest", "fastest")]
