"""``verify --runner polygraphy``: a script that compares an engine with NVIDIA's Polygraphy, and its data.

The script runs where the engine runs, without the checkpoint: what the PyTorch reference computes is written
beside it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.compare import polygraphy_compare
from q2export.errors import PackageError
from q2export.package.manifest import GRAPH_FILE, Manifest
from q2export.package.reader import Package, read_package

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.source import Source

SCRIPT, SETTINGS, INPUTS, OUTPUTS = "compare.py", "comparison.json", "inputs.json", "outputs.json"
REFERENCE = "pytorch-float32"
_DEFAULT_ATOL = 0.25  # where the package was exported without a profile; that of the GPU profiles


@dataclass(frozen=True)
class Comparison:
    """What :func:`write_comparison` wrote.

    Attributes:
        script: run it with Python where the engine is to be compared.
        runners: what it compares by default with the PyTorch reference: ``onnxrt`` runs the graph through its
            function bodies on the CPU, ``trt`` the engine through the plugins on the GPU.
    """

    script: Path
    runners: tuple[str, ...]


def write_comparison(
    package: str | Path, model: str | Path, output: str | Path, *, revision: str | None = None
) -> Comparison:
    """Write the script, the inputs of one step, and the logits of the PyTorch reference for them.

    Args:
        package: folder made by ``build`` or ``export``, of a graph with a KV cache in it.
        model: the checkpoint it was made from; folder or hub id.
        output: folder to make; nothing is left there after an error.
        revision: of a hub id.

    Raises:
        PackageError: the output exists, the package has no graph, or was made from another model.
        Q2ExportError: the checkpoint cannot be read, or polygraphy is not installed.
    """
    from q2export.compare.parity import check_same_model
    from q2export.exporter.checkpoint.source import load_source
    from q2export.pipeline.model_source import resolve_model

    opened = read_package(package)
    opened.path(GRAPH_FILE)
    folder = Path(output).absolute()
    if folder.exists():
        raise PackageError(f"{folder}: exists already; remove it or name another folder")
    source = load_source(resolve_model(model, revision).folder)
    check_same_model(opened.manifest, source)
    runners = _runners(opened.manifest)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        scale = _write_data(partial, opened.manifest, source)
        (partial / SETTINGS).write_text(_settings(opened, folder, runners, scale), encoding="utf-8")
        shutil.copy(Path(polygraphy_compare.__file__), partial / SCRIPT)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Comparison(folder / SCRIPT, runners)


def _runners(manifest: Manifest) -> tuple[str, ...]:
    """``onnxrt`` where the CPU has kernels for the type, ``trt`` where there is an engine.

    Raises:
        PackageError: neither is left.
    """
    found: tuple[str, ...] = () if manifest.engine.dtype == "bfloat16" else ("onnxrt",)
    found += ("trt",) if manifest.engine.tensorrt is not None else ()
    if not found:
        raise PackageError(
            "a bfloat16 graph without an engine can be run by nothing polygraphy drives on the CPU; build it "
            "for a GPU, or export it in float16"
        )
    return found


def _write_data(folder: Path, manifest: Manifest, source: Source) -> float:
    """Inputs of the golden step, and the logits of PyTorch in float32; returns the scale of these."""
    from q2export.compare.polygraphy_files import save_inputs, save_outputs
    from q2export.compare.prompts import golden_step
    from q2export.compare.verify.metrics import logit_scale
    from q2export.exporter.reference import CheckpointReference
    from q2export.runtime.backends.onnxruntime import step_inputs

    tokens, positions = golden_step(manifest.engine)
    logits = CheckpointReference(source).run([tokens]).logits[0][positions]
    save_inputs(folder / INPUTS, [step_inputs(manifest.engine, tokens, positions)])
    save_outputs(folder / OUTPUTS, REFERENCE, [{"logits": logits[None]}])
    return logit_scale([logits])


def _settings(opened: Package, folder: Path, runners: tuple[str, ...], logit_scale: float) -> str:
    """What the script has to know, as JSON."""
    manifest, engine = opened.manifest, opened.manifest.engine
    limit = _DEFAULT_ATOL if manifest.profile is None else manifest.profile.parity.max_abs_logit_error
    settings = {
        "written_by": f"{manifest.tool.name} {manifest.tool.version}",
        "package": os.path.relpath(opened.folder, folder),
        "graph": GRAPH_FILE,
        "engine": engine.file if engine.tensorrt else None,
        "builder": engine.tensorrt.builder if engine.tensorrt else None,
        "kv_dtype": engine.kv_dtype,
        "runners": runners,
        "atol": limit * logit_scale,
    }
    return json.dumps(settings, indent=2) + "\n"
