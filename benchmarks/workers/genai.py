"""onnxruntime-genai: a folder of ``onnxruntime_genai.models.builder``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og  # type: ignore[import-not-found]  # of the peers' interpreter

from benchmarks.workers.serve import Settings, serve, step_seconds
from benchmarks.workers.traffic import Progress


class StaticStepper:
    """Whatever waits when a batch has ended is the next one, which runs until its longest text has ended.

    Under the protocol of :class:`benchmarks.workers.traffic.Stepper`; prompts are of one length.
    """

    def __init__(self, make: Callable[[Sequence[Sequence[int]], int], Any]) -> None:
        self._make = make
        self._waiting: list[tuple[int, Sequence[int], int]] = []
        self._batch: list[tuple[int, int]] = []  # requests, and the tokens they want
        self._generator: Any = None
        self._made = 0

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Let it wait for the next batch."""
        self._waiting.append((request, prompt, count))

    def step(self) -> Iterable[Progress]:
        """One token for every text of the batch; those that have enough of them drop theirs."""
        if self._generator is None:
            waiting, self._waiting, self._made = self._waiting, [], 0
            self._batch = [(request, count) for request, _, count in waiting]
            longest = max(count for _, count in self._batch)
            self._generator = self._make([prompt for _, prompt, _ in waiting], longest)
        self._generator.generate_next_token()
        self._made += 1
        progress = [
            Progress(request, count == self._made) for request, count in self._batch if count >= self._made
        ]
        if all(count <= self._made for _, count in self._batch):
            self._generator = None
        return progress

    def close(self) -> None:
        """Drop the batch."""
        self._generator = None


class LoadedModel:
    """A model under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """The library's own loop: append the prompt, then generate token by token."""
        return (int(tokens[0]) for tokens in self._steps([prompt], count))

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """A static batch."""
        return step_seconds(self._steps(prompts, count))

    def stepper(self, clients: int) -> StaticStepper:
        """Static batches: the library has no others on a CPU."""
        return StaticStepper(self._generator)

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt; the model was built to give the last row only."""
        generator = self._generator([prompt], 1)
        last: list[float] = generator.get_logits().reshape(-1).tolist()
        return last

    def _steps(self, prompts: Sequence[Sequence[int]], count: int) -> Iterator[Sequence[int]]:
        """The next token of each prompt, ``count`` times."""
        generator = self._generator(prompts, count)
        for _ in range(count):
            generator.generate_next_token()
            yield generator.get_next_tokens()

    def _generator(self, prompts: Sequence[Sequence[int]], count: int) -> Any:
        """A generator that has read the prompts, which are of one length."""
        length = len(prompts[0]) + count
        parameters = og.GeneratorParams(self._model)
        parameters.set_search_options(
            do_sample=False, batch_size=len(prompts), min_length=length, max_length=length
        )
        generator = og.Generator(self._model, parameters)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator


class Genai:
    """Loads the built model; the number of threads goes into its ``genai_config.json``."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.model
        path = Path(settings.model) / "genai_config.json"
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = settings.threads
        path.write_text(json.dumps(config, indent=2))

    def versions(self) -> dict[str, str]:
        """The library's and ONNX Runtime's."""
        return {name: metadata.version(name) for name in ("onnxruntime-genai", "onnxruntime")}

    def load(self) -> LoadedModel:
        """``og.Model``."""
        return LoadedModel(og.Model(self._folder))


if __name__ == "__main__":
    serve(Genai)
