"""``python -m benchmarks.kernels [CASE ...]``: times the kernels on this machine's GPU, as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.kernels.case import (
    KINDS,
    Case,
    DecoderShape,
    KernelBenchmarkError,
    Workload,
    first_line,
    load_cases,
)
from benchmarks.machine import commit, describe_machine, library_versions
from q2export.errors import Q2ExportError
from q2export.strict.suggest import nearest

if TYPE_CHECKING:
    import torch

REPOSITORY = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 without a GPU, or if a result is wrong."""
    arguments = _parser().parse_args(argv)
    try:
        cases = _chosen(arguments.cases)
        result = run(cases, arguments)
    except Q2ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return int(any(record["error"] for record in result["records"]))


def run(cases: Sequence[Case], arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the ceilings, then every case.

    Raises:
        KernelBenchmarkError: there is no GPU. MissingDependencyError: the kernels are not built.
    """
    import torch

    from benchmarks.kernels import timing
    from q2export.plugins.tensorrt.torch_ops import register

    if not torch.cuda.is_available():
        raise KernelBenchmarkError("the kernels are timed on a GPU, and PyTorch sees none here")
    register()
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    torch.manual_seed(0)
    ceilings = {
        "copy_bandwidth": timing.copy_bandwidth(device),
        "matrix_peak": timing.matrix_peak(device, torch.bfloat16),
    }
    bench = Bench(device, ceilings, properties.L2_cache_size, arguments.rounds, arguments.decoder_checkpoint)
    records = [measure(case, bench) for case in cases]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(REPOSITORY),
        "command": shlex.join(["python", "-m", "benchmarks.kernels", *arguments.cases]),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "machine": describe_machine(),
        "versions": {**library_versions(), "cuda": torch.version.cuda},
        "ceilings": ceilings,
        "records": records,
    }


@dataclass(frozen=True)
class Bench:
    """What cases are measured on.

    Attributes:
        device: where the tensors are.
        ceilings: ``copy_bandwidth`` in bytes and ``matrix_peak`` in operations per second.
        l2_bytes: of its cache.
        rounds: turns of every contestant.
        decoder_checkpoint: a model of the decoder case's shape; None leaves that case out.
    """

    device: torch.device
    ceilings: Mapping[str, float]
    l2_bytes: int
    rounds: int
    decoder_checkpoint: Path | None = None


def measure(case: Case, bench: Bench) -> dict[str, Any]:
    """One case; an error is recorded with it, so that one bad case does not lose the others."""
    import torch

    record: dict[str, Any] = {"case": case.name, "kind": case.kind, "dtype": case.dtype, "error": None}
    record["shape"] = vars(case.shape)
    try:
        if isinstance(case.shape, DecoderShape):
            from benchmarks.kernels.decoder import decoder_bytes, decoder_times

            checkpoint = bench.decoder_checkpoint
            if checkpoint is None:
                return {**record, "skipped": {"q2export": "give --decoder-checkpoint FOLDER"}}
            medians = decoder_times(case, checkpoint, bench.device, bench.rounds)
            record["times"] = {name: {"median_us": median} for name, median in medians.items()}
            moved, flops = decoder_bytes(case.shape), 0
        else:
            workload = make_workload(case, bench.device, bench.l2_bytes)
            record["max_error"], record["skipped"] = checked(workload), workload.skipped
            record["times"] = times(workload, bench)
            moved, flops = workload.bytes_moved, workload.flops
    except (Q2ExportError, RuntimeError) as error:
        return {**record, "error": str(error)}
    finally:
        torch.cuda.empty_cache()
    record["figures"] = figures(record["times"], moved, flops, bench.ceilings)
    record["bars"] = judged(case, record)
    return record


def make_workload(case: Case, device: torch.device, l2_bytes: int) -> Workload:
    """The case on tensors of ``device``, in as many sets as keep the L2 cache cold."""
    from benchmarks.kernels.attention import attention_workload, rotary_workload
    from benchmarks.kernels.moe import moe_workload
    from benchmarks.kernels.timing import sets_needed

    maker = {"moe": moe_workload, "rotary": rotary_workload}.get(case.kind, attention_workload)
    one = maker(case, device, 1)
    sets = sets_needed(one.bytes_moved, l2_bytes)
    del one
    return maker(case, device, sets)


def checked(workload: Workload) -> dict[str, float]:
    """Largest error of the first set, in units of the largest reference value.

    Raises:
        KernelBenchmarkError: the subject's is more than twice that of the most exact peer, or above one
            per cent where there is no peer.
    """

    def error(output: Any) -> float:
        worst: float = (output.float() - workload.reference).abs().max().item()
        return worst / workload.reference.abs().max().item()

    errors = {"q2export": error(workload.subject[0]())}
    errors |= {name: error(launches[0]()) for name, launches in workload.peers.items()}
    peers = [value for name, value in errors.items() if name != "q2export"]
    bound = 2 * min(peers) if peers else 0.01
    if not errors["q2export"] <= bound:  # NaN is an error, too
        raise KernelBenchmarkError(f"error {errors['q2export']:.2e} is above {bound:.2e}; all: {errors}")
    return errors


def times(workload: Workload, bench: Bench) -> dict[str, dict[str, float]]:
    """Medians of all contestants, which take turns."""
    from benchmarks.kernels.timing import interleaved_medians, make_timer

    contestants = {"q2export": workload.subject, **workload.peers}
    timers = {}
    for name, launches in contestants.items():
        try:
            timers[name] = make_timer(launches, bench.device)
        except RuntimeError as error:
            if name == "q2export":
                raise
            workload.skipped[name] = f"not captured: {first_line(error)}"
    return interleaved_medians(timers, bench.rounds)


def figures(
    measured: dict[str, dict[str, float]], moved: int, flops: int, ceilings: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Fractions of the ceilings, and how many times faster the subject is than each peer."""
    ours = measured["q2export"]["median_us"]
    found = {}
    for name, each in measured.items():
        seconds = each["median_us"] / 1e6
        found[name] = {
            "copy_bandwidth": moved / seconds / ceilings["copy_bandwidth"],
            "matrix_peak": flops / seconds / ceilings["matrix_peak"],
            "speedup": each["median_us"] / ours,
        }
    return found


def judged(case: Case, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar of the case with what was found; None where a peer did not run."""
    ours, verdicts = record["figures"]["q2export"], []
    for name, bar in case.bars.items():
        kind, _, peer = name.partition(":")
        if kind == "microseconds":
            value = record["times"]["q2export"]["median_us"]
            verdicts.append({"bar": name, "at_most": bar, "value": value, "met": value <= bar})
            continue
        value = record["figures"].get(peer, {}).get("speedup") if peer else ours[kind]
        met = None if value is None else value >= bar
        verdicts.append({"bar": name, "at_least": bar, "value": value, "met": met})
    return verdicts


def table(result: dict[str, Any]) -> str:
    """A line per case and contestant."""
    lines = [f"{result['gpu']}: " + ", ".join(f"{k} {v:.3g}/s" for k, v in result["ceilings"].items())]
    for record in result["records"]:
        if record["error"]:
            lines.append(f"{record['case']}: WRONG OR FAILED: {record['error']}")
            continue
        for name, each in record.get("times", {}).items():
            of = record["figures"][name]
            lines.append(
                f"{record['case']:28} {name:20} {each['median_us']:10.1f} us"
                f"  {of['copy_bandwidth']:6.1%} of copy  {of['matrix_peak']:6.1%} of peak"
                f"  {of['speedup']:5.2f}x"
            )
        lines += [f"    skipped {name}: {reason}" for name, reason in record.get("skipped", {}).items()]
        lines += [f"    {bar}" for bar in record.get("bars", [])]
    return "\n".join(lines)


def _chosen(names: Sequence[str]) -> list[Case]:
    cases = {case.name: case for case in load_cases()}
    for name in names:
        if name not in cases:
            raise KernelBenchmarkError(f"there is no case {name!r}{nearest(name, cases)}")
    return [cases[name] for name in names] if names else list(cases.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of cases.yaml; kinds: {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=20, help="turns of every contestant")
    parser.add_argument("--decoder-checkpoint", type=Path, help="a model of the decoder case's shape")
    parser.add_argument("--output", type=Path, default=Path("build/bench/kernels.json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
