"""transformers: the checkpoint itself in PyTorch, with a key/value cache and logits of the last token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from benchmarks.workers.serve import Settings, serve, step_seconds


class LoadedModel:
    """A model under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """A bare greedy loop, which is quicker than the library's ``generate``."""
        return (tokens[0] for tokens in self._steps([prompt], count))

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """The same loop over several rows."""
        return step_seconds(self._steps(prompts, count))

    def _steps(self, prompts: Sequence[Sequence[int]], count: int) -> Iterator[list[int]]:
        """The next token of each prompt, ``count`` times."""
        tokens = torch.tensor([list(prompt) for prompt in prompts])
        cache = transformers.DynamicCache(config=self._model.config)
        for _ in range(count):
            with torch.inference_mode():
                step = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                tokens = step.logits[:, -1].argmax(dim=-1, keepdim=True)
            yield tokens[:, 0].tolist()

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt."""
        with torch.inference_mode():
            last: list[float] = (
                self._model(torch.tensor([list(prompt)]), logits_to_keep=1).logits[0, -1].tolist()
            )
        return last


class Transformers:
    """Loads the checkpoint in the dtype and with the experts' code path of the settings."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The library's and PyTorch's."""
        return {"transformers": transformers.__version__, "torch": torch.__version__}

    def load(self) -> LoadedModel:
        """``AutoModelForCausalLM.from_pretrained``."""
        dtype = getattr(torch, self._settings.dtype)
        if self._settings.experts is None:
            model = transformers.AutoModelForCausalLM.from_pretrained(self._settings.model, dtype=dtype)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                self._settings.model, dtype=dtype, experts_implementation=self._settings.experts
            )
        return LoadedModel(model.train(False))


if __name__ == "__main__":
    serve(Transformers)
