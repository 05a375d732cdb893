"""llama.cpp: a GGUF file, through the C API of llama-cpp-python in a bare greedy loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata

import llama_cpp  # type: ignore[import-not-found]  # of the peers' interpreter
import numpy as np
import numpy.typing as npt

from benchmarks.workers.serve import Settings, serve


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
        context = self._context(len(prompt) + count)
        try:
            step: Sequence[int] = prompt
            for _ in range(count):
                token = int(self._forward(context, step).argmax())
                step = [token]
                yield token
        finally:
            llama_cpp.llama_free(context)

    def logits(self, prompt: Sequence[int]) -> Sequence[float]:
        """Logits after the prompt."""
        context = self._context(len(prompt))
        try:
            last: list[float] = self._forward(context, prompt).tolist()
        finally:
            llama_cpp.llama_free(context)
        return last

    def _context(self, capacity: int) -> llama_cpp.llama_context_p:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = capacity
        parameters.n_threads = parameters.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def _forward(self, context: llama_cpp.llama_context_p, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits of the last token, ``[vocab]``, in llama.cpp's memory."""
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(self._vocab_size,))


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
