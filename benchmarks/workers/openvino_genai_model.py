"""OpenVINO GenAI: a folder of ``optimum-cli export openvino``."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]  # of an interpreter of its own
import openvino_genai  # type: ignore[import-not-found]

from benchmarks.workers.serve import Settings, serve


class LoadedModel:
    """A model under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, folder: str, pipeline: Any) -> None:
        self._folder = folder
        self._pipeline = pipeline

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """The library's own loop, which calls back for each token."""
        tokens: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        thread = threading.Thread(target=self._generate, args=(prompt, count, tokens))
        thread.start()
        try:
            for _ in range(count):
                token = tokens.get()
                if isinstance(token, BaseException):
                    raise token
                yield token
        finally:
            thread.join()

    def _generate(self, prompt: Sequence[int], count: int, tokens: Any) -> None:
        class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, token: int | Sequence[int]) -> openvino_genai.StreamingStatus:
                for each in [token] if isinstance(token, int) else token:
                    tokens.put(each)
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        try:
            self._pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), config, Streamer())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            tokens.put(error)

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt, of the same file in a process of its own: the library gives none out."""
        command = [sys.executable, "-m", __spec__.name, self._folder, json.dumps(list(prompt))]
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
        """``LLMPipeline`` on the CPU."""
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        pipeline = openvino_genai.LLMPipeline(
            self._settings.model,
            "CPU",
            INFERENCE_NUM_THREADS=self._settings.threads,
            INFERENCE_PRECISION_HINT={"float32": "f32", "bfloat16": "bf16"}[self._settings.dtype],
            scheduler_config=scheduler,
        )
        return LoadedModel(self._settings.model, pipeline)


def print_logits(folder: str, prompt: Sequence[int]) -> None:
    """Print the logits after the prompt as JSON."""
    request = openvino.Core().compile_model(f"{folder}/openvino_model.xml", "CPU").create_infer_request()
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
        print_logits(sys.argv[1], json.loads(sys.argv[2]))
    else:
        serve(OpenVinoGenai)
