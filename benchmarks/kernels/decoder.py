"""A whole dense model at batch 1: the exporter's modules over the kernels, and transformers in eager mode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.kernels.case import Case, DecoderShape
from benchmarks.kernels.torch_decoder import DecodeStep, TorchDecoder
from q2export.exporter.export import load_source
from q2export.plugins.tensorrt.torch_ops import register


class Contestant(Protocol):
    """A model with one prompt."""

    def prefill(self) -> Tensor:
        """Read the prompt and return float32 logits ``[vocab_size]`` after its last token."""
        ...

    def decode(self, tokens: int) -> float:
        """Generate greedily from behind the prompt, and return the seconds of these tokens."""
        ...


class Kernels:
    """The exporter's modules over the kernels, decode steps as a CUDA graph.

    Args:
        checkpoint: folder of a dense model.
        dtype: of weights and activations.
        prompt: int64 ``[1, tokens]``, on the device.
        new_tokens: the most that will be generated.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, prompt: Tensor, new_tokens: int) -> None:
        device = prompt.device
        if device.type == "cuda":
            register()
        self._prompt, self._length = prompt, torch.tensor([prompt.shape[1]], device=device)
        self._decoder = TorchDecoder(
            load_source(checkpoint),
            dtype=dtype,
            device=device,
            batch=1,
            capacity=prompt.shape[1] + new_tokens + 2,
        )
        self._step = DecodeStep(self._decoder, self.prefill().argmax(-1)[None])

    def prefill(self) -> Tensor:
        """See :class:`Contestant`."""
        self._decoder.past_lengths.zero_()
        return self._decoder.step(self._prompt, self._length, self._length[:, None] - 1)[0, 0]

    def decode(self, tokens: int) -> float:
        """See :class:`Contestant`."""
        self.prefill()

        def steps() -> None:
            for _ in range(tokens):
                self._step()

        return seconds(steps)


class Transformers:
    """transformers with its own cache that grows; a bare loop, quicker than ``generate``."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype, prompt: Tensor) -> None:
        self.model = transformers_model(checkpoint, dtype, prompt.device)
        self._prompt = prompt

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """See :class:`Contestant`."""
        out = self.model(self._prompt, use_cache=True, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1].float()
        return logits

    @torch.no_grad()
    def decode(self, tokens: int) -> float:
        """See :class:`Contestant`."""
        first = self.model(self._prompt, use_cache=True, logits_to_keep=1)

        def steps() -> None:
            out = first
            for _ in range(tokens):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                out = self.model(token, past_key_values=out.past_key_values, use_cache=True)

        return seconds(steps)


def transformers_model(checkpoint: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """The model, as transformers has it."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    return model.to(device).eval()


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
    contestants: dict[str, Contestant] = {
        "q2export": Kernels(checkpoint, case.torch_dtype, prompt, shape.new_tokens),
        "transformers_eager": Transformers(checkpoint, case.torch_dtype, prompt),
    }
    return decode_medians(contestants, shape.new_tokens, rounds)


def decode_medians(contestants: Mapping[str, Contestant], tokens: int, rounds: int) -> dict[str, float]:
    """Microseconds per token behind the prompt; medians over rounds in turn, the first dropped."""
    return _medians(contestants, lambda one: one.decode(tokens) / tokens * 1e6, rounds)


def prefill_medians(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, float]:
    """Microseconds of a prompt, likewise."""
    return _medians(contestants, lambda one: seconds(one.prefill) * 1e6, rounds)


def _medians(
    contestants: Mapping[str, Contestant], turn: Callable[[Contestant], float], rounds: int
) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, contestant in contestants.items():
            samples[name].append(turn(contestant))
    return {name: statistics.median(found[1:]) for name, found in samples.items()}


def seconds(run: Callable[[], object]) -> float:
    """Wall time of ``run`` with all that it queues on a GPU."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def decoder_bytes(shape: DecoderShape) -> int:
    """Weights read for one token, in 2 bytes each; the cache is small beside them."""
    head_dim = shape.hidden_size // shape.num_heads
    attention = shape.hidden_size * head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    layer = attention + 3 * shape.hidden_size * shape.intermediate_size
    return 2 * (shape.num_hidden_layers * layer + shape.vocab_size * shape.hidden_size)
