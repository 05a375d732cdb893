"""Cases of kind ``generation``: load, prefill and decode of several libraries, taking turns in one run."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.build import build, interpreter
from benchmarks.case import PLAIN_READ, Contestant, GenerationCase, ServingCase
from benchmarks.checkpoint import make_checkpoint
from benchmarks.measure import Samples, Turn, interleave
from benchmarks.process import CommandError, reset_peak, tree_rss_bytes
from benchmarks.result import Outcome, WrongResultError
from benchmarks.settings import RunSettings
from benchmarks.worker import Worker, WorkerError

_LOGITS_COMPARED = 4096
_CHECK_TOKENS = 96
_FIRST_PROMPT = 64  # tokens of the prompt after loading
_TOKEN_IDS = 256
_PROMPT_SEED = 7

DECODE, LOAD, FIRST_TOKEN = "decode", "load", "load and first token"
MEMORY, DECODE_MEMORY = "peak memory", "memory at decode"


def run_generation(case: GenerationCase, settings: RunSettings) -> Outcome:
    """Measure the case.

    Raises:
        WrongResultError: a contestant's logits are not the reference's.
        Q2ExportError: the model cannot be made, or q2export itself fails.
    """
    checkpoint = make_checkpoint(case.model, settings.work_dir / case.model.config)
    outcome = Outcome()
    prompts = _prompts(case)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for contestant in case.contestants:
            _progress(f"trial of {contestant.name}")
            try:
                worker = stack.enter_context(start_worker(contestant, checkpoint, case, settings))
                _try(worker, case, prompts)
            except (CommandError, WorkerError) as error:
                if contestant.worker == "q2export_engine":
                    raise
                outcome.skipped[contestant.name] = str(error)
                print(f"skipped {contestant.name}: {error}", file=sys.stderr)
                continue
            workers[contestant.name] = worker
            outcome.versions[contestant.name] = worker.versions
        reader = stack.enter_context(_start_reader(case, checkpoint, settings)) if case.read_of else None
        outcome.samples = _measure_loads(case, workers, prompts[0][:_FIRST_PROMPT])
        outcome.samples[DECODE_MEMORY] = {
            name: [[_decode_memory(worker, prompts[0][:_FIRST_PROMPT], case.decode_tokens)]]
            for name, worker in workers.items()
        }
        vocab_size = int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
        outcome.checks = check_logits(case, workers, prompts[0][-_CHECK_TOKENS:], vocab_size)
        outcome.samples |= _measure_steps(case, workers, prompts, reader)
        outcome.samples[MEMORY] = {
            name: [[float(tree_rss_bytes(worker.pid))]] for name, worker in workers.items()
        }
    return outcome


def _prompts(case: GenerationCase) -> list[list[int]]:
    """A prompt for the prefill, whose start is also decoded after; then the others of the batch."""
    draw = random.Random(_PROMPT_SEED)
    lengths = [case.prompt_tokens, *[case.decode_past] * ((case.batch or 1) - 1)]
    return [[draw.randrange(_TOKEN_IDS) for _ in range(length)] for length in lengths]


def start_worker(
    contestant: Contestant, checkpoint: Path, case: GenerationCase | ServingCase, settings: RunSettings
) -> Worker:
    """Build what the contestant runs, and start it."""
    arguments = {
        "model": str(build(contestant, checkpoint, case.threads, settings)),
        "threads": case.threads,
        "dtype": contestant.dtype,
        "experts": contestant.experts,
    }
    log = settings.work_dir / "logs" / f"worker-{contestant.name.replace(' ', '-')}.log"
    python = interpreter(contestant, settings)
    return Worker(python, contestant.worker, arguments, log, settings.environment(case.threads))


def _start_reader(case: GenerationCase, checkpoint: Path, settings: RunSettings) -> Worker:
    """The plain loop over the weights of one of the packages, which has been built."""
    (contestant,) = (each for each in case.contestants if each.name == case.read_of)
    model = settings.work_dir / f"{checkpoint.name}-{contestant.name.replace(' ', '-')}"
    arguments = {"model": str(model), "threads": case.threads, "dtype": "float32", "experts": None}
    log = settings.work_dir / "logs" / "worker-plain-read.log"
    worker = Worker(settings.python, "plain_read", arguments, log, settings.environment(case.threads))
    worker.load()
    return worker


def _try(worker: Worker, case: GenerationCase, prompts: Sequence[list[int]]) -> None:
    """Everything that will be measured, once and short: what fails is to fail before the long part."""
    worker.load()
    worker.generate(prompts[0][:_FIRST_PROMPT], 2)
    if case.batch is not None:
        worker.generate_batch([prompt[: case.decode_past] for prompt in prompts], 2)


def _measure_loads(case: GenerationCase, workers: Mapping[str, Worker], prompt: list[int]) -> Samples:
    """Every contestant is loaded afterwards."""
    _progress("load")
    turns = {name: partial(_load, worker, prompt) for name, worker in workers.items()}
    loads = interleave(turns, case.load_rounds, case.pause_seconds, warm_up=False)
    return {
        LOAD: {name: [[turn[0]] for turn in rounds] for name, rounds in loads.items()},
        FIRST_TOKEN: {name: [[sum(turn)] for turn in rounds] for name, rounds in loads.items()},
    }


def _load(worker: Worker, prompt: list[int]) -> list[float]:
    """Seconds to load, and seconds from there to the first token: mapped weights are read only then."""
    return [worker.load(), *worker.generate(prompt, 1)]


def _decode_memory(worker: Worker, prompt: list[int], new_tokens: int) -> float:
    """Most bytes resident while a freshly loaded model decodes."""
    reset_peak(worker.pid)
    worker.generate(prompt, new_tokens)
    return float(tree_rss_bytes(worker.pid))


def _measure_steps(
    case: GenerationCase, workers: Mapping[str, Worker], prompts: Sequence[list[int]], reader: Worker | None
) -> Samples:
    """Prefill and decode; all of a contestant's metrics in one turn, so that they can be compared, too."""
    parts = [(f"prefill-{case.prompt_tokens}", 1), (DECODE, case.decode_tokens)]
    if case.batch is not None:
        parts.append((f"{DECODE}-{case.batch}", case.decode_tokens))
    turns: dict[str, Turn] = {
        name: partial(_steps, worker, case, prompts) for name, worker in workers.items()
    }
    if reader is not None:
        turns[PLAIN_READ] = partial(reader.generate, [], case.decode_tokens)
    _progress(", ".join(metric for metric, _ in parts))
    measured = interleave(turns, case.rounds, case.pause_seconds, case.warm_up)
    reads = measured.pop(PLAIN_READ, None)
    samples: Samples = {}
    start = 0
    for metric, count in parts:
        samples[metric] = {
            name: [values[start : start + count] for values in rounds] for name, rounds in measured.items()
        }
        start += count
    if reads is not None:
        samples[DECODE][PLAIN_READ] = reads
    return samples


def _steps(worker: Worker, case: GenerationCase, prompts: Sequence[list[int]]) -> list[float]:
    """Seconds of the prefill, of each token after ``decode_past`` ones, and of each step of the batch."""
    short, count = [prompt[: case.decode_past] for prompt in prompts], case.decode_tokens + 1
    if case.decode_past == case.prompt_tokens:
        seconds = worker.generate(prompts[0], count)
    else:
        seconds = [*worker.generate(prompts[0], 1), *worker.generate(short[0], count)[1:]]
    if case.batch is not None:
        seconds += worker.generate_batch(short, count)[1:]
    return seconds


def check_logits(
    case: GenerationCase | ServingCase, workers: Mapping[str, Worker], prompt: list[int], vocab_size: int
) -> dict[str, float]:
    """Largest difference of each contestant's logits from the reference's, after one prompt.

    Raises:
        WrongResultError: a difference beyond the contestant's tolerance.
    """
    if case.reference not in workers:
        return {}
    _progress("comparison of logits")
    indices = list(range(0, vocab_size, max(1, vocab_size // _LOGITS_COMPARED)))
    expected = workers[case.reference].logits(prompt, indices)
    differences = {}
    for contestant in case.contestants:
        if contestant.name not in workers or contestant.name == case.reference:
            continue
        found = workers[contestant.name].logits(prompt, indices)
        difference = max(abs(a - b) for a, b in zip(found, expected, strict=True))
        if not difference <= contestant.tolerance:
            raise WrongResultError(
                f"{contestant.name}: logits differ by {difference:.3g} from those of {case.reference}, "
                f"accepted are {contestant.tolerance}"
            )
        differences[contestant.name] = difference
    return differences


def _progress(phase: str) -> None:
    print(f"measuring: {phase}", file=sys.stderr)
