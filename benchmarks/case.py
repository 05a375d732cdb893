"""Case files: what is measured, among whom, and the bar. One frozen dataclass per kind of case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from q2export.errors import Q2ExportError
from q2export.strict.codec import Source, from_plain
from q2export.strict.suggest import nearest
from q2export.strict.yaml import read_yaml

CASES = Path(__file__).parent / "cases"


class CaseError(Q2ExportError):
    """A case file is malformed or names something that does not exist."""


@dataclass(frozen=True)
class SpeedBar:
    """``subject`` is to be ``at_least`` times as fast (or small) in ``metric`` as the best of ``peers``."""

    metric: str
    subject: str
    peers: tuple[str, ...]
    at_least: float


@dataclass(frozen=True)
class LimitBar:
    """The median of ``metric`` of ``subject`` is to be at most ``at_most`` (seconds or bytes)."""

    metric: str
    subject: str
    at_most: float


@dataclass(frozen=True)
class GainBar:
    """A batch of ``subject`` is to give ``at_least`` times the tokens/s of its one sequence."""

    subject: str
    at_least: float


@dataclass(frozen=True)
class ModelSpec:
    """The checkpoint a case runs on.

    Attributes:
        config: name of a file in ``cases/models``, used as ``config.json``.
        weights: ``random`` bfloat16 values made from a fixed seed, or ``sparse`` files of zeros that take no
            disk.
    """

    config: str
    weights: Literal["random", "sparse"]


@dataclass(frozen=True)
class Contestant:
    """One library in one configuration, run by a worker process of its own.

    Attributes:
        name: how results call it.
        worker: module of ``benchmarks.workers``.
        dtype: of weights and activations.
        experts: ``experts_implementation`` of transformers, for mixture-of-experts models.
        build: more arguments of the command that builds it: ``q2export build``, the builder of
            onnxruntime-genai, ``write_gguf``, or ``optimum-cli export openvino``.
        tolerance: largest accepted difference of its logits from the reference's.
    """

    name: str
    worker: Literal[
        "q2export_engine",
        "q2export_http",
        "genai",
        "llama_cpp_model",
        "openvino_genai_model",
        "transformers_model",
    ]
    dtype: Literal["float32", "bfloat16"]
    experts: Literal["eager", "grouped_mm"] | None
    build: tuple[str, ...]
    tolerance: float


@dataclass(frozen=True)
class GenerationCase:
    """Load, prefill and decode, of one sequence and of a batch, all contestants interleaved.

    Attributes:
        reference: contestant whose logits the others are compared with.
        prompt_tokens: length of the prefill.
        decode_past: length of the prompt before decoding starts; where it is ``prompt_tokens``, the prompt is
            read once per turn.
        decode_tokens: tokens decoded per turn.
        batch: sequences that are also decoded at once; null for none.
        read_of: contestant of q2export whose weights are also read by a plain loop in turn with the decoding;
            null for none.
        rounds, load_rounds: turns of every contestant; a load round starts afresh and also gives the time to
            the first token.
        warm_up: run one more round first and drop it.
        pause_seconds: before each turn, for the threads of the previous contestant to go to sleep.
    """

    kind: Literal["generation"]
    title: str
    model: ModelSpec
    threads: int
    reference: str
    prompt_tokens: int
    decode_past: int
    decode_tokens: int
    batch: int | None
    read_of: str | None
    rounds: int
    load_rounds: int
    warm_up: bool
    pause_seconds: float
    contestants: tuple[Contestant, ...]
    speed_bars: tuple[SpeedBar, ...]
    limit_bars: tuple[LimitBar, ...]
    gain_bars: tuple[GainBar, ...]


@dataclass(frozen=True)
class ServingCase:
    """Clients that each ask one request after the other, of all contestants in turn.

    Attributes:
        reference: contestant whose logits the others are compared with.
        clients: how many at once; each number is measured.
        requests: of each client, one after the other.
        prompt_tokens: of each request.
        new_tokens: least and most of each request; they differ, so that requests end at different times.
        rounds, warm_up, pause_seconds: as in :class:`GenerationCase`.
    """

    kind: Literal["serving"]
    title: str
    model: ModelSpec
    threads: int
    reference: str
    clients: tuple[int, ...]
    requests: int
    prompt_tokens: int
    new_tokens: tuple[int, int]
    rounds: int
    warm_up: bool
    pause_seconds: float
    contestants: tuple[Contestant, ...]
    speed_bars: tuple[SpeedBar, ...]
    limit_bars: tuple[LimitBar, ...]


@dataclass(frozen=True)
class Command:
    """A command whose time and memory are measured.

    Attributes:
        name: how results call it.
        arguments: with ``{q2export}`` (the command), ``{peers_python}``, ``{model}`` (the checkpoint),
            ``{output}`` (removed before each run) and ``{cache}`` (a scratch folder).
    """

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class CommandsCase:
    """Wall time, peak memory of the process tree and bytes written, of commands run in turn."""

    kind: Literal["commands"]
    title: str
    model: ModelSpec
    threads: int
    rounds: int
    commands: tuple[Command, ...]
    speed_bars: tuple[SpeedBar, ...]
    limit_bars: tuple[LimitBar, ...]


Case = GenerationCase | ServingCase | CommandsCase
KINDS: Mapping[str, type[GenerationCase] | type[ServingCase] | type[CommandsCase]] = {
    "generation": GenerationCase,
    "serving": ServingCase,
    "commands": CommandsCase,
}
ORT_OPS = "ort-ops"
PLAIN_READ = "plain read"
"""How results and bars call the loop that reads the weights of ``read_of``."""


def case_names() -> list[str]:
    """Names of all case files, in the order they run."""
    return sorted(path.stem for path in CASES.glob("*.yaml"))


def case_path(name: str) -> Path:
    """The file of a case.

    Raises:
        CaseError: there is no such case; the message names the nearest.
    """
    path = CASES / f"{name}.yaml"
    if not path.is_file():
        raise CaseError(f"there is no case {name!r}{nearest(name, case_names())}")
    return path


def read_case(path: Path) -> tuple[str, Mapping[str, object], Source]:
    """The kind of a case file and its content, not yet checked.

    Raises:
        CaseError: not YAML, not a mapping, or of no known kind.
    """
    data, source = read_yaml(path, CaseError), Source(str(path), CaseError)
    if not isinstance(data, Mapping):
        raise source.refuse("", "a mapping", data)
    kind = data.get("kind")
    if kind not in (*KINDS, ORT_OPS):
        raise CaseError(f"{path}: kind is {kind!r}{nearest(str(kind), [*KINDS, ORT_OPS])}")
    return str(kind), data, source


def parse_case(kind: str, data: Mapping[str, object], source: Source) -> Case:
    """Check a case of kind ``generation``, ``serving`` or ``commands``.

    Raises:
        CaseError: an unknown or missing key, a wrong type, or a bar that names no contestant.
    """
    case = from_plain(KINDS[kind], data, source)
    if isinstance(case, GenerationCase):
        names = [contestant.name for contestant in case.contestants]
        mentioned = [case.reference, *(bar.subject for bar in case.gain_bars)]
        if case.read_of is not None:
            mentioned.append(case.read_of)
            names.append(PLAIN_READ)
        if case.gain_bars and case.batch is None:
            raise CaseError(f"{source.label}: gain_bars need a batch")
    elif isinstance(case, ServingCase):
        names, mentioned = [contestant.name for contestant in case.contestants], [case.reference]
    else:
        names = [command.name for command in case.commands]
        mentioned = []
    mentioned += [bar.subject for bar in case.limit_bars]
    for bar in case.speed_bars:
        mentioned += [bar.subject, *bar.peers]
        if not bar.peers:
            raise CaseError(f"{source.label}: the bar of {bar.subject!r} in {bar.metric!r} has no peers")
    for name in mentioned:
        if name not in names:
            raise CaseError(f"{source.label}: {name!r} is no contestant of this case{nearest(name, names)}")
    if len(set(names)) < len(names):
        raise CaseError(f"{source.label}: two contestants have the same name: {', '.join(names)}")
    return case
