"""Cases of kind ``generation``: load, prefill and decode of several libraries, taking turns in one run."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.case import Contestant, GenerationCase
from benchmarks.checkpoint import make_checkpoint
from benchmarks.measure import Samples, interleave
from benchmarks.process import CommandError, run_measured, tree_rss_bytes
from benchmarks.result import Outcome, WrongResultError
from benchmarks.settings import RunSettings
from benchmarks.worker import Worker, WorkerError

_LOGITS_COMPARED = 4096
_CHECK_TOKENS = 96
_TOKEN_IDS = 256
_PROMPT_SEED = 7

DECODE, LOAD, FIRST_TOKEN, MEMORY = "decode", "load", "load and first token", "peak memory"


def run_generation(case: GenerationCase, settings: RunSettings) -> Outcome:
    """Measure the case.

    Raises:
        WrongResultError: a contestant's logits are not the reference's.
        Q2ExportError: the model cannot be made, or q2export itself fails.
    """
    checkpoint = make_checkpoint(case.model, settings.work_dir / case.model.config)
    outcome = Outcome()
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for contestant in case.contestants:
            try:
                workers[contestant.name] = stack.enter_context(_start(contestant, checkpoint, case, settings))
            except (CommandError, WorkerError) as error:
                if contestant.worker == "q2export_engine":
                    raise
                outcome.skipped[contestant.name] = str(error)
                print(f"skipped {contestant.name}: {error}", file=sys.stderr)
                continue
            outcome.versions[contestant.name] = workers[contestant.name].versions
        draw = random.Random(_PROMPT_SEED)
        prompt = [draw.randrange(_TOKEN_IDS) for _ in range(case.prompt_tokens)]
        outcome.samples = _measure_loads(case, workers, prompt[: case.decode_past])
        vocab_size = int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
        outcome.checks = _check_logits(case, workers, prompt[-_CHECK_TOKENS:], vocab_size)
        outcome.samples |= _measure_steps(case, workers, prompt)
        outcome.samples[MEMORY] = {
            name: [[float(tree_rss_bytes(worker.pid))]] for name, worker in workers.items()
        }
    return outcome


def _start(contestant: Contestant, checkpoint: Path, case: GenerationCase, settings: RunSettings) -> Worker:
    """Build what the contestant runs, and start it."""
    environment = settings.environment(case.threads)
    name = contestant.name.replace(" ", "-")
    model = settings.work_dir / f"{checkpoint.name}-{name}"
    command = _build_command(contestant, checkpoint, model, settings)
    if command:
        if model.is_dir():
            shutil.rmtree(model)
        run_measured(command, settings.work_dir / "logs" / f"build-{name}.log", environment)
    arguments = {
        "model": str(model if command else checkpoint),
        "threads": case.threads,
        "dtype": contestant.dtype,
        "experts": contestant.experts,
        "prepack": contestant.prepack,
    }
    log = settings.work_dir / "logs" / f"worker-{name}.log"
    return Worker(_python(contestant, settings), contestant.worker, arguments, log, environment)


def _build_command(
    contestant: Contestant, checkpoint: Path, model: Path, settings: RunSettings
) -> Sequence[str]:
    """The command that makes ``model``; none for what runs the checkpoint itself."""
    python, build = _python(contestant, settings), contestant.build
    match contestant.worker:
        case "q2export_engine":
            start = [settings.q2export, "build", "--model", str(checkpoint), "--output", str(model)]
            return [*start, "--no-parity", *build]
        case "genai":
            start = [
                python,
                "-m",
                "onnxruntime_genai.models.builder",
                "-i",
                str(checkpoint),
                "-o",
                str(model),
            ]
            start += ["-e", "cpu", "-c", str(settings.work_dir / "cache"), *(build or ["-p", "fp32"])]
            return [*start, "--extra_options", "prune_lm_head=true"]  # logits of the last token only
        case "llama_cpp_model":
            return [python, "-m", "benchmarks.workers.write_gguf", str(checkpoint), str(model)]
        case "openvino_genai_model":
            exporter = str(Path(python).with_name("optimum-cli"))
            start = [exporter, "export", "openvino", "--model", str(checkpoint), *build, str(model)]
            return [*start, "--task", "text-generation-with-past"]
        case "transformers_model":
            return []


def _python(contestant: Contestant, settings: RunSettings) -> str:
    """The interpreter that has the contestant's library."""
    own = {"q2export_engine": settings.python, "openvino_genai_model": settings.openvino_python}
    return own.get(contestant.worker, settings.peers_python)


def _measure_loads(case: GenerationCase, workers: Mapping[str, Worker], prompt: list[int]) -> Samples:
    """Every contestant is loaded afterwards."""
    _progress("load")
    turns = {name: partial(_load, worker, prompt) for name, worker in workers.items()}
    loads = interleave(turns, case.load_rounds, case.pause_seconds)
    return {
        LOAD: {name: [[turn[0]] for turn in rounds] for name, rounds in loads.items()},
        FIRST_TOKEN: {name: [[sum(turn)] for turn in rounds] for name, rounds in loads.items()},
    }


def _measure_steps(case: GenerationCase, workers: Mapping[str, Worker], prompt: list[int]) -> Samples:
    short = prompt[: case.decode_past]
    prefill = {name: partial(_prefill, worker, prompt) for name, worker in workers.items()}
    decode = {name: partial(worker.decode, short, case.decode_tokens) for name, worker in workers.items()}
    samples: Samples = {}
    for metric, turns in ((f"prefill-{case.prompt_tokens}", prefill), (DECODE, decode)):
        _progress(metric)
        samples[metric] = interleave(turns, case.rounds, case.pause_seconds)
    return samples


def _load(worker: Worker, prompt: list[int]) -> list[float]:
    """Seconds to load, and seconds from there to the first token: mapped weights are read only then."""
    return [worker.load(), worker.prefill(prompt)]


def _prefill(worker: Worker, prompt: list[int]) -> list[float]:
    return [worker.prefill(prompt)]


def _check_logits(
    case: GenerationCase, workers: Mapping[str, Worker], prompt: list[int], vocab_size: int
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
