"""q2export: a package of ``q2export build``, through the public API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime

import q2export
from benchmarks.workers.serve import Settings, serve
from q2export.runtime.engine import Engine


class LoadedEngine:
    """An engine under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Stream a greedy continuation."""
        events = self._engine.stream(prompt, max_new_tokens=count, do_sample=False, ignore_eos=True)
        return (event.token_id for event in events)

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """The mean of the later steps, as often as there are: results give times as sums."""
        results = self._engine.generate_batch(prompts, max_new_tokens=count, do_sample=False, ignore_eos=True)
        timings = results[-1].timings
        return [timings.time_to_first_token] + [timings.decode_seconds / (count - 1)] * (count - 1)

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Score the prompt and take the last row."""
        last: list[float] = self._engine.score(np.array(prompt))[-1].tolist()
        return last


class Q2Export:
    """Loads packages; threads and package come from the settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The package's and ONNX Runtime's."""
        return {"q2export": q2export.__version__, "onnxruntime": onnxruntime.__version__}

    def load(self) -> LoadedEngine:
        """``q2export.load``."""
        settings = self._settings
        return LoadedEngine(q2export.load(settings.model, threads=settings.threads))


if __name__ == "__main__":
    serve(Q2Export)
