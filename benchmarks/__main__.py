"""``python -m benchmarks [CASE ...]``: runs cases, writes one JSON file each, and plots them."""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import (
    ORT_OPS,
    GenerationCase,
    ServingCase,
    case_names,
    case_path,
    parse_case,
    read_case,
)
from benchmarks.machine import commit, describe_machine, library_versions
from benchmarks.result import judge, records
from benchmarks.settings import RunSettings
from benchmarks.worker import REPOSITORY
from q2export.errors import Q2ExportError

_PEERS_PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"
_OPENVINO_PYTHON = REPOSITORY / ".venv-openvino" / "bin" / "python"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a case failed or a bar is not reached and ``--strict`` is given."""
    arguments = _parser().parse_args(argv)
    work_dir, output_dir = arguments.work_dir.absolute(), arguments.output_dir.absolute()
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = RunSettings(
        work_dir=work_dir,
        q2export=str(Path(sys.executable).with_name("q2export")),
        python=sys.executable,
        peers_python=str(arguments.peers_python.absolute()),
        openvino_python=str(arguments.openvino_python.absolute()),
    )
    failed = missed = False
    for name in arguments.cases or case_names():
        try:
            result = run_case(name, settings, arguments.rounds)
        except Q2ExportError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
            continue
        (output_dir / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        missed |= any(bar["met"] is False for bar in result["bars"])
        _print_summary(result)
    _write_pages(output_dir)
    return int(failed or (arguments.strict and missed))


def run_case(name: str, settings: RunSettings, rounds: int | None = None) -> dict[str, Any]:
    """Run one case and return its result as JSON-ready data.

    Args:
        name: of a file in ``cases``.
        settings: where things are.
        rounds: instead of the case file's.

    Raises:
        Q2ExportError: the case file is wrong, or the case cannot be measured.
    """
    kind, data, source = read_case(case_path(name))
    if rounds is not None:
        data = {**data, "rounds": rounds}
    result: dict[str, Any] = {
        "case": name,
        "kind": kind,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(REPOSITORY),
        "command": shlex.join(
            ["python", "-m", "benchmarks", name, *([f"--rounds={rounds}"] if rounds else [])]
        ),
        "machine": describe_machine(),
        "versions": library_versions(),
    }
    if kind == ORT_OPS:
        # imported here so that measured commands do not start from a process that holds ONNX Runtime
        from benchmarks.ort_ops.run import OrtOpsSpec, measure_ort_ops
        from q2export.strict.codec import from_plain

        spec = from_plain(OrtOpsSpec, data, source)
        return {
            **result,
            "threads": spec.threads,
            "bars": [],
            "decisions": list(spec.decisions),
            "records": measure_ort_ops(spec, source, settings.work_dir),
        }
    from benchmarks.clients import run_serving
    from benchmarks.commands import run_commands
    from benchmarks.generation import run_generation

    case = parse_case(kind, data, source)
    if isinstance(case, GenerationCase):
        outcome = run_generation(case, settings)
    elif isinstance(case, ServingCase):
        outcome = run_serving(case, settings)
    else:
        outcome = run_commands(case, settings)
    return {
        **result,
        "title": case.title,
        "threads": case.threads,
        "versions": outcome.versions or result["versions"],
        "skipped": outcome.skipped,
        "max_abs_logit_difference": outcome.checks,
        "bars": judge(case, outcome.samples),
        "records": records(outcome.samples),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {', '.join(case_names())}")
    parser.add_argument(
        "--work-dir", type=Path, default=Path("build/bench"), help="checkpoints and packages (GB)"
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("build/bench/results"), help="JSON, tables, plot"
    )
    parser.add_argument("--rounds", type=int, help="turns of every contestant, instead of the case file's")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is not reached")
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=_PEERS_PYTHON if _PEERS_PYTHON.exists() else Path(sys.executable),
        help="interpreter with benchmarks/requirements-peers.txt  [default: .venv-peers, else this one]",
    )
    parser.add_argument(
        "--openvino-python",
        type=Path,
        default=_OPENVINO_PYTHON,
        help="interpreter with benchmarks/requirements-openvino.txt  [default: .venv-openvino]",
    )
    return parser


def _print_summary(result: dict[str, Any]) -> None:
    from benchmarks.report import summary_lines

    print("\n".join(summary_lines(result)))


def _write_pages(output_dir: Path) -> None:
    """Tables and plot of all results in the folder, those of earlier runs included."""
    from benchmarks.plot import plot_speedups
    from benchmarks.report import ort_ops_page

    results = [json.loads(path.read_text()) for path in sorted(output_dir.glob("*.json"))]
    for result in results:
        if result["kind"] == ORT_OPS:
            (output_dir / f"{result['case'].replace('-', '_')}.md").write_text(ort_ops_page(result))
    compared = [result for result in results if any("speedup_over" in bar for bar in result["bars"])]
    if compared:
        plot_speedups(compared, output_dir / "speedups.png")


if __name__ == "__main__":
    sys.exit(main())
