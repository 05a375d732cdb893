"""One page of what all stages have found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.plan import STAGES


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """The page, in Markdown: a line for each stage, then a section with its steps.

    A step's line is what it returned under ``line``, or else its error.
    """
    what = {stage.name: stage.what for stage in STAGES}
    lines = ["# GPU run", "", *_head(records), "", "| stage | | seconds | |", "|---|---|---:|---|"]
    for record in records:
        name = record["stage"]
        lines.append(f"| {name} | {record['status']} | {record.get('seconds', '')} | {what.get(name, '')} |")
    for record in records:
        lines += ["", f"## {record['stage']}", ""]
        lines += [_step(name, step) for name, step in record["steps"].items()]
    return "\n".join(lines) + "\n"


def _head(records: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for record in records:
        gpu = record.get("gpu") or {}
        found = f"{gpu.get('name', 'no GPU')}, driver {gpu.get('driver_version', 'none')}"
        dry = ", **dry run: nothing here was measured**" if record.get("dry") else ""
        lines.append(f"{found}, commit {record['commit']}{dry}. `{record.get('command', '')}`")
    return list(dict.fromkeys(lines))


def _step(name: str, step: Mapping[str, Any]) -> str:
    value = step["value"]
    line = value.get("line", "") if isinstance(value, dict) else ""
    error = (step["error"] or "").strip()
    first, _, rest = error.partition("\n")
    text = " ".join(part for part in (line, first) if part)
    detail = f"\n\n  ```text\n  {rest.replace(chr(10), chr(10) + '  ')}\n  ```\n" if rest else ""
    mark = {"passed": "", "skipped": " (skipped)"}.get(step["status"], f" **{step['status']}**")
    return f"- {name}{mark}: {text}{detail}"
