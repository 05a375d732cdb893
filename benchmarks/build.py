"""Builds what contestants run. A peer's is kept between runs, until its command or requirements change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from benchmarks.case import Contestant
from benchmarks.process import run_measured
from benchmarks.settings import RunSettings

_HERE = Path(__file__).parent
_INGREDIENTS = ("requirements-peers.txt", "requirements-openvino.txt", "workers/write_gguf.py")


def build(contestant: Contestant, checkpoint: Path, threads: int, settings: RunSettings) -> Path:
    """Path of what the contestant loads; the checkpoint itself where nothing is to be built.

    Raises:
        CommandError: the build fails.
    """
    name = contestant.name.replace(" ", "-")
    model = settings.work_dir / f"{checkpoint.name}-{name}"
    command = _command(contestant, checkpoint, model, settings)
    if not command:
        return checkpoint
    ingredients = [(_HERE / file).read_text() for file in _INGREDIENTS]
    config = (checkpoint / "config.json").read_text()
    made_from = json.dumps([command, config, *ingredients])
    record = settings.work_dir / "logs" / f"{model.name}.built.json"
    is_peer = not contestant.worker.startswith("q2export")
    if is_peer and model.exists() and record.is_file() and record.read_text() == made_from:
        return model
    record.unlink(missing_ok=True)
    if model.is_dir():
        shutil.rmtree(model)
    log = settings.work_dir / "logs" / f"build-{name}.log"
    run_measured(command, log, settings.environment(threads))
    record.write_text(made_from)
    return model


def interpreter(contestant: Contestant, settings: RunSettings) -> str:
    """The interpreter that has the contestant's library."""
    own = {
        "q2export_engine": settings.python,
        "q2export_http": settings.python,
        "openvino_genai_model": settings.openvino_python,
    }
    return own.get(contestant.worker, settings.peers_python)


def _command(contestant: Contestant, checkpoint: Path, model: Path, settings: RunSettings) -> list[str]:
    """The command that makes ``model``; none for what runs the checkpoint itself."""
    python, source, output = interpreter(contestant, settings), str(checkpoint), str(model)
    match contestant.worker:
        case "q2export_engine" | "q2export_http":
            start = [settings.q2export, "build", "--model", source, "--output", output, "--no-parity"]
            return [*start, *contestant.build]
        case "genai":
            start = [python, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", output]
            start += ["-e", "cpu", "-c", str(settings.work_dir / "cache"), *contestant.build]
            return [*start, "--extra_options", "prune_lm_head=true"]  # logits of the last token only
        case "llama_cpp_model":
            return [python, "-m", "benchmarks.workers.write_gguf", source, output, *contestant.build]
        case "openvino_genai_model":
            exporter = str(Path(python).with_name("optimum-cli"))
            start = [exporter, "export", "openvino", "--model", source, *contestant.build, output]
            return [*start, "--task", "text-generation-with-past"]
        case "transformers_model":
            return []
