"""OpenVINO GenAI: a folder of ``optimum-cli export openvino``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # of an interpreter of its own
import openvino_genai  # type: ignore[import-not-found]

from benchmarks.workers.serve import Settings, serve, step_seconds
from benchmarks.workers.traffic import Progress

_STEP_TOKENS = 512  # of prompts, per step; twice the default: eight prompts of the batch are read in one step


class PipelineStepper:
    """A pipeline under the protocol of :class:`benchmarks.workers.traffic.Stepper`."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._requests: dict[int, tuple[Any, int]] = {}  # the library's request, and the tokens it still owes

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Add it to the pipeline."""
        config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        ids = openvino.Tensor(np.array([prompt], np.int64))
        self._requests[request] = (self._pipeline.add_request(request, ids, config), count)

    def step(self) -> Iterable[Progress]:
        """One step of the pipeline."""
        self._pipeline.step()
        progress = []
        for request, (handle, left) in list(self._requests.items()):
            if not handle.can_read():
                continue
            came = sum(len(output.generated_ids) for output in handle.read().values())
            progress += [Progress(request, left - number == 1) for number in range(came)]
            self._requests[request] = (handle, left - came)
            if left == came:
                del self._requests[request]
        return progress

    def close(self) -> None:
        """All requests have ended; the pipeline stays."""


class LoadedModel:
    """A model under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, folder: str, precision: str, pipeline: Any) -> None:
        self._folder, self._precision = folder, precision
        self._pipeline = pipeline

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """The library's own loop, of which ``generate`` is one more wrapper."""
        return (tokens[0] for tokens in self._steps([prompt], count))

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """Continuous batching of requests that come together."""
        return step_seconds(self._steps(prompts, count))

    def _steps(self, prompts: Sequence[Sequence[int]], count: int) -> Iterator[list[int]]:
        """The next token of each prompt, ``count`` times."""
        config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        requests = [
            self._pipeline.add_request(index, openvino.Tensor(np.array([prompt], np.int64)), config)
            for index, prompt in enumerate(prompts)
        ]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            ready = [request.can_read() for request in requests]
            if not any(ready):
                continue  # a part of the prompts was read
            if not all(ready):  # reading would wait forever
                raise RuntimeError(f"{sum(ready)} of {len(ready)} sequences advanced in a step")
            outputs = [output for request in requests for output in request.read().values()]
            yield [int(output.generated_ids[-1]) for output in outputs]

    def stepper(self, clients: int) -> PipelineStepper:
        """The pipeline's own continuous batching."""
        return PipelineStepper(self._pipeline)

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt, of the same file in a process of its own: the library gives none out."""
        arguments = [self._folder, self._precision, json.dumps(list(prompt))]
        command = [sys.executable, "-m", __spec__.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        last: list[float] = json.loads(done.stdout)
        return last


class OpenVinoGenai:
    """Loads the exported model; without the prefix cache, since prompts are repeated."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The runtime's and the exporter's."""
        return {name: metadata.version(name) for name in ("openvino-genai", "openvino", "optimum-intel")}

    def load(self) -> LoadedModel:
        """``ContinuousBatchingPipeline`` on the CPU: what ``LLMPipeline`` runs there, step by step."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        precision = {"float32": "f32", "bfloat16": "bf16"}[self._settings.dtype]
        properties = {
            "INFERENCE_NUM_THREADS": self._settings.threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        folder = self._settings.model
        pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
        return LoadedModel(folder, precision, pipeline)


def print_logits(folder: str, precision: str, prompt: Sequence[int]) -> None:
    """Print the logits after the prompt as JSON."""
    hint = {"INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(f"{folder}/openvino_model.xml", "CPU", hint)
    request = model.create_infer_request()
    length = len(prompt)
    inputs = {
        "input_ids": np.array([prompt], np.int64),
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    print(json.dumps(request.infer(inputs)["logits"][0, -1].tolist()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_logits(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    else:
        serve(OpenVinoGenai)
