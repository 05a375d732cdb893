"""The engine a program talks to: scores and generates token ids, and text where there is a tokenizer."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from q2export.errors import GenerationError
from q2export.runtime.backends.base import Backend, Float32Array, Int64Array
from q2export.runtime.chat import ChatTemplate, Message
from q2export.runtime.control_tokens import encode_sanitized
from q2export.runtime.detokenizer import IncrementalDetokenizer
from q2export.runtime.generate import generate
from q2export.runtime.generation_config import GenerationDefaults
from q2export.runtime.lifetime import Lifetime, TokenStream
from q2export.runtime.options import GenerationOptions, OptionKeywords
from q2export.runtime.prompt import new_token_limit, token_array
from q2export.runtime.results import GenerationResult
from q2export.runtime.sampling import LogitsProcessor, Sampler, check_finite
from q2export.runtime.sequence import RunningSequence
from q2export.runtime.stopping import StopStrings
from q2export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing import Self, Unpack

Prompt = str | Sequence[int] | npt.NDArray[np.integer[Any]]
"""Token ids, or text for an engine with a tokenizer."""

_SCORE_PIECE_BYTES = 64 << 20  # logits asked for at once


class Engine:
    """A loaded engine package. See :func:`q2export.runtime.load`.

    Calls do not share state: each allocates a KV cache of the size it needs and drops it at its end. Several
    threads may call it at once. It is a context manager, whose end closes it.

    Args:
        backend: the engine proper.
        tokenizer: None for an engine that knows token ids only.
        defaults: from ``generation_config.json``; None is greedy, without end-of-text token.
        chat_template: None where the package has none.
        name: of the package, for messages.
    """

    def __init__(
        self,
        backend: Backend[Any],
        *,
        tokenizer: Tokenizer | None = None,
        defaults: GenerationDefaults | None = None,
        chat_template: ChatTemplate | None = None,
        name: str = "this package",
    ) -> None:
        self._backend: Backend[Any] | None = backend
        self.lifetime = Lifetime()
        """In whose context each call of the backend is made."""
        self.tokenizer = tokenizer
        self.defaults = GenerationDefaults() if defaults is None else defaults
        self.chat_template = chat_template
        self._name = name

    @property
    def backend(self) -> Backend[Any]:
        """The engine proper.

        Raises:
            GenerationError: the engine is closed.
        """
        backend = self._backend
        if backend is None:
            raise self.lifetime.refusal()
        return backend

    def close(self) -> None:
        """Free the engine; may be called from any thread, and again.

        What other threads generate ends with a :class:`~q2export.errors.GenerationError` after the step that
        runs, for which this waits; so does every later use.
        """
        self.lifetime.close()
        self._backend = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def generate(self, prompt: Prompt, **options: Unpack[OptionKeywords]) -> GenerationResult:
        """Continue a prompt. What is not given comes from the package's ``generation_config.json``.

        Args:
            prompt: token ids, or text.
            options: fields of :class:`~q2export.runtime.options.GenerationOptions`. A ``max_new_tokens``
                given here must fit the engine's capacity; the default is cut to what fits.

        Raises:
            GenerationError: an unknown option or one out of its range, an empty prompt, a token id outside
                the vocabulary, more tokens than the engine's capacity, text without a tokenizer, or logits
                that are not finite.
        """
        return self.generate_batch([prompt], **options)[0]

    def generate_batch(
        self, prompts: Sequence[Prompt], **options: Unpack[OptionKeywords]
    ) -> list[GenerationResult]:
        """Continue several prompts at once, of any lengths; one result each, in their order.

        Options and errors are those of :meth:`generate`. ``seed`` is one for all prompts, so that a text does
        not depend on the batch, or a sequence of one for each. A sequence that has ended costs nothing while
        others run.
        """
        self._check_batch(prompts)
        sequences = self.sequences(prompts, options)
        results = {
            sequence.index: event.result
            for sequence, event in generate(self.backend, sequences, self.lifetime.computing)
            if event.result
        }
        return [results[sequence.index] for sequence in sequences]

    def stream(self, prompt: Prompt, **options: Unpack[OptionKeywords]) -> TokenStream:
        """Continue a prompt token by token. Options and errors are those of :meth:`generate`.

        Wrong options are refused here, before the first token is asked for. The last event carries the
        result, which equals that of :meth:`generate`. The stream may be cancelled from any thread.
        """
        backend, sequences = self.backend, self.sequences([prompt], options)
        return TokenStream(
            lambda computing: (event for _, event in generate(backend, sequences, computing)), self.lifetime
        )

    def score(self, token_ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Float32Array:
        """Logits after each token of one sequence: float32 ``[tokens, vocab]``.

        Beside the result, at most one piece of :meth:`score_pieces` is held.

        Raises:
            GenerationError: as in :meth:`score_pieces`.
        """
        sequence = self._scorable(token_ids)
        logits = np.empty((len(sequence), self.backend.vocab_size), np.float32)
        start = 0
        for piece in self._score(sequence):
            logits[start : start + len(piece)] = piece
            start += len(piece)
        return logits

    def score_pieces(self, token_ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Iterator[Float32Array]:
        """The rows of :meth:`score` in pieces ``[n, vocab]`` of at most 64 MiB, each valid until the next.

        Raises:
            GenerationError: an empty sequence, one longer than the engine's capacity, a token id outside the
                vocabulary, or logits that are not finite.
        """
        return self._score(self._scorable(token_ids))

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        sanitize_control_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, up to the start of the assistant's next turn.

        Args:
            messages: ``[{"role": "user", "content": "..."}, ...]``, oldest first.
            tools: JSON schemas of functions, for templates that offer them to the model.
            sanitize_control_tokens: encode the text of a special token in a message, such as ``<|im_end|>``,
                as the text it is. Without it, as in transformers, it becomes the token, and whoever writes a
                message can end it and write the next one in any role: a service wants True.

        Raises:
            GenerationError: the package has no chat template or no tokenizer, or the template refuses the
                messages.
        """
        if self.chat_template is None:
            raise GenerationError(
                f"{self._name} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); give the whole prompt to generate"
            )
        tokenizer, capacity = self._with_tokenizer("messages"), self.backend.max_capacity
        if sanitize_control_tokens:
            return encode_sanitized(tokenizer, self.chat_template, messages, tools, capacity)
        text = self.chat_template.render(messages, tools=tools)
        return tokenizer.encode(text, add_special_tokens=False, most_tokens=capacity)

    def _with_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise GenerationError(f"{what} need a tokenizer, and {self._name} has no tokenizer.json")
        return self.tokenizer

    def token_ids(self, prompt: Prompt, name: str = "the prompt") -> Int64Array:
        """A prompt as ``[tokens]`` ids.

        Args:
            prompt: token ids, or text.
            name: of the prompt, for messages.

        Raises:
            GenerationError: it is empty, has a token id outside the vocabulary, or is text and there is no
                tokenizer.
        """
        ids: Any = prompt
        if isinstance(prompt, str):
            ids = self._with_tokenizer("prompts of text").encode(
                prompt, most_tokens=self.backend.max_capacity
            )
        return token_array(ids, self.backend.vocab_size, name)

    def sequences(
        self,
        prompts: Sequence[Prompt],
        given: OptionKeywords,
        *,
        capacity: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> list[RunningSequence]:
        """What is to be generated, checked in full before anything is computed; for whoever runs the steps.

        Args:
            prompts: at least one.
            given: options of the caller.
            capacity: tokens that a sequence may hold, at most the engine's, which None takes.
            processors: one for each prompt, or none.

        Raises:
            GenerationError: as in :meth:`generate`.
        """
        options = self.defaults.options.updated(given)
        if options.logit_bias:
            token_array(list(options.logit_bias), self.backend.vocab_size, "logit_bias")
        limit = self.backend.max_capacity if capacity is None else capacity
        asked = given.get("max_new_tokens")
        stop_ids, stop_strings = self._stops(options)
        sequences = []
        for index, (prompt, seed) in enumerate(zip(prompts, options.seeds(len(prompts)), strict=True)):
            name = "the prompt" if len(prompts) == 1 else f"prompt {index}"
            tokens, processor = self.token_ids(prompt, name), processors[index] if processors else None
            sequence = RunningSequence(
                index=index,
                prompt=tokens,
                sampler=Sampler(options, tokens, seed, tuple(stop_ids), processor),
                max_new_tokens=new_token_limit(options, asked, len(tokens), limit, name),
                min_new_tokens=options.min_new_tokens,
                stop_ids=stop_ids,
                detokenizer=None if self.tokenizer is None else IncrementalDetokenizer(self.tokenizer.decode),
                stop_strings=StopStrings(stop_strings),
                logprobs=options.logprobs,
            )
            sequences.append(sequence)
        return sequences

    def _check_batch(self, prompts: Sequence[Prompt]) -> None:
        limit = self.backend.max_batch
        if isinstance(prompts, str) or not 1 <= len(prompts) <= limit:
            found = "a string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
            raise GenerationError(
                f"this engine takes a batch of 1 to {limit} prompts, found {found}; split the batch"
            )

    def _stops(self, options: GenerationOptions) -> tuple[dict[int, str | None], list[str]]:
        """Tokens that end the text, with the stop string each stands for; and the other stop strings."""
        stop_ids: dict[int, str | None] = (
            {} if options.ignore_eos else dict.fromkeys(self.defaults.eos_token_ids)
        )
        others = []
        for stop in options.stop_strings:
            token_id = self._with_tokenizer("stop strings").special_token_id(stop)
            if token_id is None:
                others.append(stop)
            else:
                stop_ids[token_id] = stop
        return stop_ids, others

    def _scorable(self, token_ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Int64Array:
        tokens = token_array(token_ids, self.backend.vocab_size, "the sequence")
        capacity = self.backend.max_capacity
        if len(tokens) > capacity:
            raise GenerationError(
                f"the sequence has {len(tokens)} tokens, the engine's capacity is {capacity}; shorten it, "
                "score it in parts, or build an engine of larger capacity"
            )
        return tokens

    def _score(self, tokens: Int64Array) -> Iterator[Float32Array]:
        backend = self.backend
        width = max(1, min(backend.prefill_chunk, _SCORE_PIECE_BYTES // (4 * backend.vocab_size)))
        cache = backend.new_cache(1, len(tokens))
        for start in range(0, len(tokens), width):
            piece = tokens[None, start : start + width]
            count = piece.shape[1]
            lengths = np.array([start], np.int64), np.array([count], np.int64)
            with self.lifetime.computing():
                logits = backend.forward(cache, piece, *lengths, np.arange(count)[None])[0]
            check_finite(logits, functools.partial(_after, start))
            yield logits


def _after(start: int, row: int) -> str:
    return f"after token {start + row}"
