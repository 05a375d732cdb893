"""Structured output: texts that meet a JSON schema, a regular expression or a grammar, by way of llguidance.

A grammar says before each token which ones may come; all others are forbidden, so that what comes out cannot
be anything else. A text that ``max_new_tokens`` cuts off is the beginning of one that meets it.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from q2export.contracts.commands import install_command
from q2export.errors import GenerationError, MissingDependencyError
from q2export.runtime.backends.base import Float32Array

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from q2export.runtime.engine import Engine
    from q2export.runtime.tokenizer import Tokenizer

_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"
_MOST_MESSAGE = 500  # characters of what llguidance says


class Grammar:
    """A compiled grammar, for any number of texts of one engine.

    Args:
        matcher: at the start of a text.
        vocab_size: of the engine.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def processor(self) -> GrammarProcessor:
        """A processor for one text."""
        return GrammarProcessor(self._matcher.deep_copy(), self._vocab_size)


class GrammarProcessor:
    """A :class:`~q2export.runtime.sampling.LogitsProcessor`: only tokens that a grammar allows may come.

    Args:
        matcher: at the start of a text; it is this processor's own.
        vocab_size: of the engine.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._mask = np.empty((vocab_size + 31) // 32, np.int32)  # a bit for each token that may come

    @property
    def finished(self) -> bool:
        """Whether nothing can come after the token that was accepted last."""
        return bool(self._matcher.is_stopped())

    def process(self, logits: Float32Array) -> None:
        """Forbid, in ``logits [vocab]``, what the grammar does not allow.

        Raises:
            GenerationError: the grammar grew too complex, or allows nothing that the vocabulary has.
        """
        mask = self._mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        allowed = np.unpackbits(mask.view(np.uint8), count=self._vocab_size, bitorder="little")
        if not allowed.any():
            raise GenerationError("no token of the vocabulary continues a text of this grammar")
        np.copyto(logits, np.float32(-np.inf), where=allowed == 0)

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen.

        Raises:
            GenerationError: the grammar does not allow it, or grew too complex.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"the grammar cannot go on: {_short(self._matcher.get_error())}")


class Grammars:
    """Compiles grammars for one engine; may be used from several threads.

    Its first use reads the engine's vocabulary, once: 1.6 s for the 151,665 tokens of Qwen2.

    Args:
        engine: with a tokenizer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    def json_schema(self, schema: Mapping[str, Any] | str) -> Grammar:
        """JSON that meets a schema; ``{"type": "object"}`` is any object.

        Raises:
            GenerationError: the schema is wrong, or uses what llguidance has not (``uniqueItems``, unknown
                formats, ...); the message says which.
        """
        return self.lark(f"start: {json_rule(schema)}", "the JSON schema")

    def regex(self, regex: str) -> Grammar:
        """A text that a regular expression matches in whole; without look-around and back references.

        Raises:
            GenerationError: it is malformed, or uses those.
        """
        from llguidance import LLMatcher

        return self._compile(LLMatcher.grammar_from_regex(regex), "the regular expression")

    def choice(self, texts: Sequence[str]) -> Grammar:
        """One of several texts.

        Raises:
            GenerationError: there is none, or one is empty.
        """
        if not texts or "" in texts:
            raise GenerationError("a choice needs at least one text, and none of them empty")
        return self.lark(f"start: {' | '.join(map(json.dumps, texts))}", "the choice")

    def lark(self, grammar: str, what: str = "the grammar") -> Grammar:
        """A text of a grammar, in llguidance's dialect of Lark.

        Raises:
            GenerationError: it is malformed.
        """
        from llguidance import LLMatcher

        return self._compile(LLMatcher.grammar_from_lark(grammar), what)

    def literal(self, text: str) -> str:
        """How a grammar writes ``text``, which is a token of its own in some vocabularies."""
        token_id = self._engine_tokenizer().added_token_id(text)
        if token_id is not None and self.tokenizer.is_special_token(token_id):
            return text
        return json.dumps(text)

    def _compile(self, grammar: str, what: str) -> Grammar:
        from llguidance import LLMatcher

        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GenerationError(f"{what} cannot be used: {_short(matcher.get_error())}")
        return Grammar(matcher, self._engine.backend.vocab_size)

    @property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance wants it.

        Raises:
            GenerationError: the engine has no tokenizer.
            MissingDependencyError: llguidance is not installed.
        """
        with self._lock:
            return self._tokenizer

    @functools.cached_property
    def _tokenizer(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise MissingDependencyError(
                f"structured output needs the package llguidance: {install_command('server')}"
            ) from None
        eos = list(self._engine.defaults.eos_token_ids)
        core = self._engine_tokenizer().to_json()
        return LLTokenizer(core, n_vocab=self._engine.backend.vocab_size, eos_token=eos or None)

    def _engine_tokenizer(self) -> Tokenizer:
        if self._engine.tokenizer is None:
            raise GenerationError("structured output needs a tokenizer, and this package has none")
        return self._engine.tokenizer


def json_rule(schema: Mapping[str, Any] | str) -> str:
    """How a grammar writes JSON of a schema; white space is bounded, so that a text cannot be filled with it.

    Raises:
        GenerationError: a text that is no JSON object.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise GenerationError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, Mapping):
        raise GenerationError("the JSON schema must be an object")
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': _WHITE_SPACE}})}"


def _short(message: str) -> str:
    text = " ".join(message.split())
    return text if len(text) <= _MOST_MESSAGE else f"{text[:_MOST_MESSAGE]}..."
