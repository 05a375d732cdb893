"""What the machine is and has; everything compiled once; the two ceilings that later stages divide by."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Session, StepFailed

PROGRAMS = ("nvcc", "g++", "ncu", "compute-sanitizer", "cuobjdump")


def run(session: Session) -> None:
    """The steps."""
    session.step("machine", _machine, session)
    session.step("CUDA kernels", _build, session, "q2export.plugins.kernel_build", "cuda")
    session.step("probes of the kernels", _build, session, "tests.gpu.compiling")
    session.step("CPU kernels", _build, session, "q2export.plugins.kernel_build", "cpu")
    session.step("ceilings", measured_ceilings, session)


def ceilings(session: Session) -> dict[str, float]:
    """What this stage has measured; measured again where it has not run."""
    path = session.folder / "probe.json"
    if path.is_file():
        record = json.loads(path.read_text(encoding="utf-8"))
        step = record["steps"].get("ceilings", {})
        if step.get("status") == "passed" and record["dry"] == session.dry:
            return {name: step["value"][name] for name in ("copy_bandwidth", "matrix_peak")}
    found = measured_ceilings(session)
    return {name: found[name] for name in ("copy_bandwidth", "matrix_peak")}


def measured_ceilings(session: Session) -> dict[str, Any]:
    """Bytes per second of a large copy, operations per second of a large bf16 product."""
    import torch

    from benchmarks.kernels.timing import copy_bandwidth, matrix_peak

    device, small = session.device, session.dry
    copy = copy_bandwidth(device, rounds=2, size=1 << 20) if small else copy_bandwidth(device)
    peak = matrix_peak(device, torch.bfloat16, 2, 64) if small else matrix_peak(device, torch.bfloat16)
    line = f"copy {copy / 1e12:.3g} TB/s, bf16 product {peak / 1e12:.3g} TFLOP/s"
    return {"copy_bandwidth": copy, "matrix_peak": peak, "line": line}


def _machine(session: Session) -> dict[str, Any]:
    import torch

    if not session.dry and not torch.cuda.is_available():
        raise StepFailed(f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU")
    found: dict[str, Any] = {"python": sys.version, "torch": torch.__version__, "cuda": torch.version.cuda}
    found["programs"] = {name: _program(name) for name in PROGRAMS}
    found["free_disk_gib"] = round(shutil.disk_usage(session.folder).free / 2**30, 1)
    if not session.dry:
        properties = torch.cuda.get_device_properties(0)
        names = ("name", "multi_processor_count", "total_memory", "L2_cache_size")
        found |= {name: getattr(properties, name) for name in names}
    missing = [name for name, path in found["programs"].items() if path is None]
    found["line"] = f"{found.get('name', 'no GPU')}, torch {found['torch']}" + (
        f"; not installed: {', '.join(missing)}" if missing else ""
    )
    return found


def _program(name: str) -> str | None:
    usual = Path("/usr/local/cuda/bin") / name
    return shutil.which(name) or (str(usual) if usual.is_file() else None)


def _build(session: Session, module: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", module, *arguments]
    done = session.tool(command, 150, lambda: "built\n")
    return {"line": done.checked(module).strip().splitlines()[-1]}
