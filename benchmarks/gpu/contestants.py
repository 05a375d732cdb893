"""Two more ways to run a decoder: a package of ours, and transformers compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.decoder import seconds, transformers_model


class Engine:
    """A package of q2export, through its public API: sampling and the Python loop are part of the time.

    Args:
        checkpoint: folder of the model.
        package: to be built there.
        profile: to build for.
        prompt: int64 ``[1, tokens]``.
    """

    def __init__(self, checkpoint: Path, package: Path, profile: str, prompt: Tensor) -> None:
        import q2export

        q2export.build(checkpoint, package, profile=profile, parity=False, overwrite=True)
        self._engine = q2export.load(package)
        self._prompt = prompt[0].cpu().numpy()
        backend = self._engine.backend
        self._cache = backend.new_cache(1, backend.max_capacity)

    def prefill(self) -> Tensor:
        """See :class:`~benchmarks.kernels.decoder.Contestant`."""
        from q2export.runtime.prefill import prefill

        return torch.from_numpy(prefill(self._engine.backend, self._cache, [self._prompt])[0].copy())

    def decode(self, tokens: int) -> float:
        """See :class:`~benchmarks.kernels.decoder.Contestant`."""
        result = self._engine.generate(
            self._prompt.tolist(), max_new_tokens=tokens + 1, do_sample=False, ignore_eos=True
        )
        return result.timings.decode_seconds


class Compiled:
    """transformers under ``torch.compile``: the forward pass for prompts, a static cache for decoding.

    Args:
        checkpoint: folder of the model.
        dtype: of weights and activations.
        prompt: int64 ``[1, tokens]``.
        compiles: also prompts, for which the forward pass is compiled; ``generate`` compiles decoding over a
            static cache by itself, on a GPU.
    """

    def __init__(self, checkpoint: Path, dtype: torch.dtype, prompt: Tensor, compiles: bool) -> None:
        self._model = transformers_model(checkpoint, dtype, prompt.device)
        self._prompt = prompt
        self._forward: Any = torch.compile(self._model, dynamic=False) if compiles else self._model

    @torch.no_grad()
    def prefill(self) -> Tensor:
        """See :class:`~benchmarks.kernels.decoder.Contestant`."""
        out = self._forward(self._prompt, use_cache=False, logits_to_keep=1)
        logits: Tensor = out.logits[0, -1].float()
        return logits

    def decode(self, tokens: int) -> float:
        """See :class:`~benchmarks.kernels.decoder.Contestant`; what more tokens add to ``generate``."""
        return seconds(lambda: self._generate(tokens + 1)) - seconds(lambda: self._generate(1))

    @torch.no_grad()
    def _generate(self, tokens: int) -> None:
        self._model.generate(
            self._prompt,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
        )
