"""A whole dense model at batch 1: the exporter's modules over the kernels, and transformers in eager mode."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.kernels.case import Case, DecoderShape
from benchmarks.kernels.torch_decoder import DecodeStep, TorchDecoder
from q2export.exporter.export import load_source
from q2export.plugins.tensorrt.torch_ops import register


def decoder_times(case: Case, checkpoint: Path, device: torch.device, rounds: int) -> dict[str, float]:
    """Microseconds per generated token of each contestant, medians over rounds in turn.

    Args:
        case: of kind ``decoder``.
        checkpoint: folder of a model of its shape.
        device: a GPU.
        rounds: turns of each; a turn is all new tokens.
    """
    shape = case.shape
    assert isinstance(shape, DecoderShape)
    prompt = torch.randint(0, shape.vocab_size, (1, shape.prompt), device=device)
    ours, theirs = _ours(case, checkpoint, device, prompt), _Transformers(case, checkpoint, device, prompt)
    samples: dict[str, list[float]] = {"q2export": [], "transformers_eager": []}
    for _ in range(rounds + 1):
        for name, run in (("q2export", ours), ("transformers_eager", theirs)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run(shape.new_tokens)
            torch.cuda.synchronize()
            samples[name].append((time.perf_counter() - start) / shape.new_tokens * 1e6)
    return {name: statistics.median(found[1:]) for name, found in samples.items()}


class _Ours:
    def __init__(self, decoder: TorchDecoder, step: DecodeStep, prompt_tokens: int) -> None:
        self._decoder, self._step, self._prompt_tokens = decoder, step, prompt_tokens

    def __call__(self, tokens: int) -> None:
        self._decoder.past_lengths.fill_(self._prompt_tokens)
        for _ in range(tokens):
            self._step()


def _ours(case: Case, checkpoint: Path, device: torch.device, prompt: torch.Tensor) -> _Ours:
    shape = case.shape
    assert isinstance(shape, DecoderShape)
    register()
    capacity = shape.prompt + shape.new_tokens + 1
    decoder = TorchDecoder(
        load_source(checkpoint), dtype=case.torch_dtype, device=device, batch=1, capacity=capacity
    )
    length = torch.tensor([shape.prompt], device=device)
    logits = decoder.step(prompt, length, length[:, None] - 1)
    return _Ours(decoder, DecodeStep(decoder, logits[:, 0].argmax(-1)), shape.prompt)


class _Transformers:
    def __init__(self, case: Case, checkpoint: Path, device: torch.device, prompt: torch.Tensor) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=case.torch_dtype)
        self._model = model.to(device).eval()
        self._prompt = prompt

    @torch.no_grad()
    def __call__(self, tokens: int) -> None:
        out = self._model(self._prompt, use_cache=True, logits_to_keep=1)
        for _ in range(tokens):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            out = self._model(token, past_key_values=out.past_key_values, use_cache=True)


def decoder_bytes(shape: DecoderShape) -> int:
    """Weights read for one token, in 2 bytes each; the cache is small beside them."""
    head_dim = shape.hidden_size // shape.num_heads
    attention = shape.hidden_size * head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return 2 * (shape.num_hidden_layers * layer + shape.vocab_size * shape.hidden_size)
