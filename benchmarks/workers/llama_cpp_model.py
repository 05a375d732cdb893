"""llama.cpp: a GGUF file, through the C API of llama-cpp-python in a bare greedy loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata

import llama_cpp  # type: ignore[import-not-found]  # of the peers' interpreter
import numpy as np
import numpy.typing as npt

from benchmarks.workers.serve import Settings, serve, step_seconds

_PROMPT_BATCH = 2048  # tokens of one call of llama_decode; its own default


class LoadedModel:
    """A model under the protocol of :class:`benchmarks.workers.serve.Model`."""

    def __init__(self, path: str, threads: int) -> None:
        self._threads = threads
        self._model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def __del__(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokens(self, prompt: Sequence[int], count: int) -> Iterator[int]:
        """Decode the prompt in one batch, then token by token; logits of the last token only."""
        return (tokens[0] for tokens in self._steps([prompt], count))

    def batch_seconds(self, prompts: Sequence[Sequence[int]], count: int) -> list[float]:
        """One batch of a token of every sequence per step."""
        return step_seconds(self._steps(prompts, count))

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt."""
        context = self._context(1, len(prompt))
        try:
            last: list[float] = self._forward(context, [prompt], 0)[0].tolist()
        finally:
            llama_cpp.llama_free(context)
        return last

    def _steps(self, prompts: Sequence[Sequence[int]], count: int) -> Iterator[list[int]]:
        """The next token of each prompt, ``count`` times."""
        length = len(prompts[0])
        context = self._context(len(prompts), length + count)
        try:
            rows, past = prompts, 0
            for step in range(count):
                tokens = [int(logits.argmax()) for logits in self._forward(context, rows, past)]
                rows, past = [[token] for token in tokens], length + step
                yield tokens
        finally:
            llama_cpp.llama_free(context)

    def _context(self, sequences: int, capacity: int) -> llama_cpp.llama_context_p:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = sequences * capacity
        parameters.n_seq_max = sequences
        parameters.n_batch = max(_PROMPT_BATCH, sequences * capacity)
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def _forward(
        self, context: llama_cpp.llama_context_p, rows: Sequence[Sequence[int]], past: int
    ) -> list[npt.NDArray[np.float32]]:
        """Logits of the last token of each row, ``[vocab]``, in llama.cpp's memory."""
        batch, last = _batch(rows, past)
        status = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        shape = (self._vocab_size,)
        return [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), shape=shape)
            for index in last
        ]


def _batch(rows: Sequence[Sequence[int]], past: int) -> tuple[llama_cpp.llama_batch, list[int]]:
    """Rows of as many sequences that come after ``past`` tokens, and the index of the last of each row."""
    batch = llama_cpp.llama_batch_init(sum(map(len, rows)), 0, 1)
    last = []
    for sequence, row in enumerate(rows):
        for position, token in enumerate(row, start=past):
            index = batch.n_tokens
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = 0
            batch.n_tokens += 1
        batch.logits[batch.n_tokens - 1] = 1
        last.append(batch.n_tokens - 1)
    return batch, last


class LlamaCpp:
    """Loads GGUF files."""

    def __init__(self, settings: Settings) -> None:
        llama_cpp.llama_backend_init()
        self._settings = settings

    def versions(self) -> dict[str, str]:
        """The binding's; it contains llama.cpp."""
        return {"llama-cpp-python": metadata.version("llama-cpp-python")}

    def load(self) -> LoadedModel:
        """``llama_model_load_from_file``."""
        return LoadedModel(self._settings.model, self._settings.threads)


if __name__ == "__main__":
    serve(LlamaCpp)
