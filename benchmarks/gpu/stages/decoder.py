"""The 0.5B shape at batch 1: decode and prefill of every way to run it, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.host import host_kernels
from benchmarks.gpu.session import Session, StepFailed
from benchmarks.gpu.stages.engines import CHECKPOINTS, profile
from benchmarks.gpu.stages.probe import ceilings

if TYPE_CHECKING:
    import torch

    from benchmarks.kernels.decoder import Contestant

PROMPTS = (512, 4096)
DECODE_PROMPT, NEW_TOKENS = 512, 128
FLOAT_DIFFERENCE = 0.1
"""Root mean square of the differences of logits to transformers' own, over theirs, that bf16 may cause."""
REFERENCES = Path(__file__).resolve().parents[1] / "references.yaml"


def run(session: Session) -> None:
    """The steps."""
    checkpoint = session.step("checkpoint", _checkpoint, session)
    if checkpoint is None:
        return
    folder = Path(checkpoint["folder"])
    with host_kernels(session.dry):
        for tokens in (12,) if session.dry else PROMPTS:
            session.step(f"prefill {tokens}", prefill, session, folder, tokens)
        session.step("decode", decode, session, folder)


def _checkpoint(session: Session) -> dict[str, str]:
    if session.dry:
        return {"folder": str(CHECKPOINTS / "qwen2-tiny")}
    from benchmarks.case import ModelSpec
    from benchmarks.checkpoint import make_checkpoint

    spec = ModelSpec("qwen2-0.5b", "random")
    return {"folder": str(make_checkpoint(spec, session.scratch("qwen2-0.5b")))}


def prefill(session: Session, checkpoint: Path, tokens: int) -> dict[str, Any]:
    """Milliseconds of a prompt, and tokens a second."""
    from benchmarks.kernels.decoder import prefill_medians

    contestants, skipped = made(session, checkpoint, tokens, 0)
    difference = _difference(contestants)
    medians = prefill_medians(contestants, 1 if session.dry else 10)
    lines = [f"{name} {us / 1e3:.2f} ms" for name, us in medians.items()]
    return {
        "microseconds": medians,
        "tokens_per_second": {name: tokens / us * 1e6 for name, us in medians.items()},
        "sizes": {"prompt": tokens},
        "logit_difference": difference,
        "skipped": skipped,
        "line": ", ".join(lines + [f"no {name}: {why}" for name, why in skipped.items()]),
    }


def decode(session: Session, checkpoint: Path) -> dict[str, Any]:
    """Microseconds of a token, and the share of the time that reading the weights takes at copy bandwidth."""
    from benchmarks.kernels.decoder import decode_medians
    from q2export.errors import Q2ExportError
    from q2export.exporter.export import load_source
    from q2export.strict.yaml import read_yaml

    prompt, new_tokens = (5, 3) if session.dry else (DECODE_PROMPT, NEW_TOKENS)
    contestants, skipped = made(session, checkpoint, prompt, new_tokens)
    difference = _difference(contestants)
    medians = decode_medians(contestants, new_tokens, 1 if session.dry else 5)
    tensors = load_source(checkpoint).checkpoint.tensors.values()
    floor = sum(ref.nbytes for ref in tensors) / ceilings(session)["copy_bandwidth"] * 1e6
    references: Any = read_yaml(REFERENCES, Q2ExportError)
    published = references["decode_share_of_bandwidth"]
    lines = [f"{name} {us:.0f} us ({floor / us:.0%} of the limit)" for name, us in medians.items()]
    lines += [f"no {name}: {why}" for name, why in skipped.items()]
    lines += [f"{name}, published: {each['value']:.0%} ({each['what']})" for name, each in published.items()]
    return {
        "microseconds": medians,
        "floor_microseconds": floor,
        "published": published,
        "sizes": {"prompt": prompt, "new_tokens": new_tokens},
        "logit_difference": difference,
        "skipped": skipped,
        "line": ", ".join(lines),
    }


def made(
    session: Session, checkpoint: Path, prompt_tokens: int, new_tokens: int
) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Contestants that can run here, ready, and why others cannot; for prompts alone without new tokens."""
    import torch

    from benchmarks.gpu import contestants as peers
    from benchmarks.kernels.decoder import Kernels, Transformers

    torch.manual_seed(0)
    prompt = torch.randint(0, 257, (1, prompt_tokens), device=session.device)
    dtype = torch.float32 if session.dry else torch.bfloat16
    compiles = new_tokens == 0 and not session.dry
    makers: dict[str, Callable[[], Contestant]] = {
        "q2export kernels": lambda: Kernels(checkpoint, dtype, prompt, new_tokens),
        "q2export onnxruntime": lambda: peers.Engine(
            checkpoint, session.scratch("packages") / "decoder", profile(session), prompt
        ),
        "transformers eager": lambda: Transformers(checkpoint, dtype, prompt),
        "transformers compiled": lambda: peers.Compiled(checkpoint, dtype, prompt, compiles),
    }
    ready: dict[str, Contestant] = {}
    skipped = {}
    for name, make in makers.items():
        start = time.monotonic()
        try:
            ready[name] = make()
            ready[name].prefill()
            if new_tokens:
                ready[name].decode(new_tokens)
        except Exception as error:  # noqa: BLE001 - a peer that cannot run here must not stop the others
            ready.pop(name, None)
            skipped[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        print(f"{name}: ready after {time.monotonic() - start:.1f} s {skipped.get(name, '')}", flush=True)
    if "q2export kernels" not in ready and "q2export onnxruntime" not in ready:
        raise StepFailed(f"nothing of q2export runs: {skipped}")
    return ready, skipped


def _difference(contestants: Mapping[str, Contestant]) -> dict[str, float]:
    """Of the logits after the prompt, to those of transformers in eager mode.

    Raises:
        StepFailed: they are further apart than half precision explains.
    """
    logits: dict[str, torch.Tensor] = {name: one.prefill().float().cpu() for name, one in contestants.items()}
    usual = logits.pop("transformers eager", None)
    if usual is None:
        raise StepFailed("transformers did not run: there is nothing to compare with")
    scale = usual.square().mean().sqrt()
    found = {name: float((each - usual).square().mean().sqrt() / scale) for name, each in logits.items()}
    wrong = {name: value for name, value in found.items() if not value <= FLOAT_DIFFERENCE}
    if wrong:
        raise StepFailed(f"logits differ by {wrong} of their size", found)
    return found
