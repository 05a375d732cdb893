"""llama.cpp: a GGUF file, through the C API of llama-cpp-python in a bare greedy loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import llama_cpp  # type: ignore[import-not-found]  # of the peers' interpreter
import numpy as np
import numpy.typing as npt

from benchmarks.workers.serve import Settings, serve, step_seconds
from benchmarks.workers.traffic import Progress

_SLOT_TOKENS = 256  # of a client, prompt and generated
_PROMPT_BATCH = 2048  # tokens of one call of llama_decode; its own default


class SlotStepper:
    """What llama-server does with its slots, over the same call: one batch of all of them per step.

    Texts that run give it one token each; what room is left in it goes to prompts.
    Under the protocol of :class:`benchmarks.workers.traffic.Stepper`.
    """

    def __init__(self, context: llama_cpp.llama_context_p, slots: int, vocab_size: int) -> None:
        self._context, self._vocab_size = context, vocab_size
        self._free = list(range(slots))
        self._slots: dict[int, _Slot] = {}

    def add(self, request: int, prompt: Sequence[int], count: int) -> None:
        """Take a free slot."""
        self._slots[self._free.pop()] = _Slot(request, list(prompt), count)

    def step(self) -> Iterable[Progress]:
        """One batch."""
        room = _PROMPT_BATCH
        parts: list[tuple[int, list[int]]] = []
        for number, slot in sorted(self._slots.items(), key=lambda item: len(item[1].ahead)):
            parts.append((number, slot.ahead[:room]))
            room -= len(parts[-1][1])
        parts = [(number, tokens) for number, tokens in parts if tokens]
        batch = llama_cpp.llama_batch_init(sum(len(tokens) for _, tokens in parts), 0, 1)
        last = {number: self._fill(batch, number, tokens) for number, tokens in parts}
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return [progress for number, index in last.items() for progress in self._take(number, index)]

    def close(self) -> None:
        """Free the context."""
        llama_cpp.llama_free(self._context)

    def _fill(self, batch: llama_cpp.llama_batch, number: int, tokens: list[int]) -> int:
        """Put a slot's tokens into the batch; the index of the last."""
        slot = self._slots[number]
        for token in tokens:
            index = batch.n_tokens
            batch.token[index], batch.pos[index] = token, slot.past
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, number
            batch.logits[index] = 0
            batch.n_tokens += 1
            slot.past += 1
        slot.ahead = slot.ahead[len(tokens) :]
        batch.logits[batch.n_tokens - 1] = not slot.ahead
        return int(batch.n_tokens) - 1

    def _take(self, number: int, index: int) -> Iterator[Progress]:
        """The next token of a slot whose prompt was read; at its end the slot is free."""
        slot = self._slots[number]
        if slot.ahead:
            return
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        slot.ahead = [int(np.ctypeslib.as_array(logits, shape=(self._vocab_size,)).argmax())]
        slot.left -= 1
        if slot.left == 0:
            llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), number, -1, -1)
            del self._slots[number]
            self._free.append(number)
        yield Progress(slot.request, slot.left == 0)


@dataclass
class _Slot:
    request: int
    ahead: list[int]  # tokens that the model has not read
    left: int
    past: int = 0


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

    def stepper(self, clients: int) -> SlotStepper:
        """A slot for each client, of at most ``_SLOT_TOKENS`` tokens."""
        return SlotStepper(self._context(clients, _SLOT_TOKENS), clients, self._vocab_size)

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
