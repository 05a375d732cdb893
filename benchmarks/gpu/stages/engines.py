"""ONNX Runtime engines of both trained checkpoints: built, verified, tokens held against transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import REPOSITORY, Session, StepFailed, StepSkipped

CHECKPOINTS = REPOSITORY / "tests" / "data" / "checkpoints"
MODELS = ("qwen2-tiny", "qwen2-moe-tiny")
VARIANTS: dict[str, dict[str, object]] = {
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "int4": {"dtype": "float16", "quantization.weights": "int4"},
}
"""Overrides of the profile."""
PROMPTS = ("A class definition", "The ", "def main(")
NEW_TOKENS = 48
TIE = 0.1
"""Logits this near each other may change places in half precision."""


def profile(session: Session) -> str:
    """Of the GPU; a dry run builds for the CPU."""
    return "cpu" if session.dry else "cuda"


def run(session: Session) -> None:
    """The steps."""
    session.step("ONNX Runtime", _providers, session)
    if session.dry:
        session.step("overrides of the GPU's profile", _planned)
    variants: dict[str, dict[str, object]] = {"float32": {}} if session.dry else VARIANTS
    for model in MODELS[: 1 if session.dry else None]:
        for variant, overrides in variants.items():
            name = f"{model} {variant}"
            package = session.scratch("packages") / name.replace(" ", "-")
            session.step(f"{name}: build", build, session, model, package, overrides)
            session.step(f"{name}: verify", verify, package, model, session.dry)
            if variant != "int4":
                session.step(f"{name}: tokens", tokens, session, package, model)


def _planned() -> dict[str, Any]:
    """What of the real run's builds is refused: names and values of overrides are checked here."""
    from q2export import api
    from q2export.errors import ExportError

    refused = {}
    for model in MODELS:
        for variant, overrides in VARIANTS.items():
            try:
                api.plan(CHECKPOINTS / model, profile="cuda", overrides=overrides, parity=False)
            except ExportError as error:  # of the model; a ProfileError would be a mistake of ours
                refused[f"{model} {variant}"] = str(error)
    return {"refused": refused, "line": f"{len(refused)} refused"}


def _providers(session: Session) -> dict[str, Any]:
    from q2export.runtime.onnxruntime_import import import_onnxruntime

    onnxruntime = import_onnxruntime()
    found = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
    line = f"{found['version']}: {', '.join(found['providers'])}"
    if not session.dry and "CUDAExecutionProvider" not in found["providers"]:
        raise StepFailed(f"{line}; needs onnxruntime-gpu", found)
    return {**found, "line": line}


def build(session: Session, model: str, package: Path, overrides: dict[str, object]) -> dict[str, Any]:
    """Build without parity: :func:`verify` is a step of its own, with an error of its own."""
    from q2export import api
    from q2export.errors import Q2ExportError

    try:
        api.plan(CHECKPOINTS / model, profile=profile(session), overrides=overrides, parity=False)
    except Q2ExportError as refusal:
        raise StepSkipped(str(refusal)) from refusal
    start = time.perf_counter()
    api.build(
        CHECKPOINTS / model,
        package,
        profile=profile(session),
        overrides=overrides,
        parity=False,
        overwrite=True,
    )
    return {"line": f"{time.perf_counter() - start:.1f} s"}


def verify(package: Path, model: str, dry: bool) -> dict[str, Any]:
    """``q2export verify``."""
    from q2export import api

    _check_built(package)
    report = api.verify(package, CHECKPOINTS / model, greedy_tokens=8 if dry else 64)
    total = getattr(report, "total", None)
    found: dict[str, Any] = {"failures": list(getattr(report, "failures", ()))}
    if total is not None:
        found["line"] = (
            f"largest error {total.max_abs_error:.3g}, mean KL {total.mean_kl:.2g}, "
            f"top-1 {total.top1_agreement:.2%} of {total.tokens} tokens"
        )
    if not report.passed:
        raise StepFailed("; ".join(found["failures"]) or "the report has not passed", found)
    return found


def _check_built(package: Path) -> None:
    if not package.is_dir():
        raise StepSkipped("it is not built")


def tokens(session: Session, package: Path, model: str) -> dict[str, Any]:
    """Greedy tokens; where one is not transformers' choice in float32, how much it prefers its own."""
    import torch

    import q2export
    from benchmarks.kernels.decoder import transformers_model

    _check_built(package)

    engine = q2export.load(package)
    oracle = transformers_model(CHECKPOINTS / model, torch.float32, session.device)
    worst, compared = 0.0, 0
    count = 6 if session.dry else NEW_TOKENS
    for prompt in PROMPTS:
        assert engine.tokenizer is not None  # of these checkpoints
        asked = engine.tokenizer.encode(prompt)
        result = engine.generate(asked, max_new_tokens=count, do_sample=False, ignore_eos=True)
        ids = [*asked, *result.token_ids]
        with torch.no_grad():
            logits = oracle(torch.tensor([ids], device=session.device)).logits[0].float()
        rows = logits[len(asked) - 1 : -1]
        made = torch.tensor(result.token_ids, device=session.device)[:, None]
        gaps = rows.amax(-1) - rows.gather(1, made)[:, 0]
        worst, compared = max(worst, gaps.max().item()), compared + len(result.token_ids)
    engine.close()
    line = f"{compared} tokens; transformers prefers others by at most {worst:.3g}"
    if not worst <= TIE:
        raise StepFailed(line, {"worst": worst})
    return {"worst": worst, "line": line}
