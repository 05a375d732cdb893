"""Text to token ids and back, with the checkpoint's ``tokenizer.json``."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.errors import ConfigError, GenerationError, MissingDependencyError, Q2ExportError
from q2export.runtime.token_bytes import vocabulary_bytes
from q2export.runtime.tokenizer_rules import TOKENIZER_CONFIG_FILE as TOKENIZER_CONFIG_FILE
from q2export.runtime.tokenizer_rules import TOKENIZER_FILE as TOKENIZER_FILE
from q2export.runtime.tokenizer_rules import apply_rules
from q2export.strict.json import read_object

if TYPE_CHECKING:
    import tokenizers

_MAX_CONFIG_BYTES = 16 << 20
_NORMALIZED = 4  # no Unicode normal form makes a text shorter than a quarter of its bytes
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """The byte-level BPE tokenizer of a Qwen2 checkpoint.

    Args:
        core: a loaded ``tokenizers.Tokenizer``.
        special_tokens: ``{"eos_token": "<|im_end|>", ...}``, the names that chat templates use.
    """

    def __init__(self, core: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        self._core = core
        self.special_tokens = dict(special_tokens)
        self._added = core.get_added_tokens_decoder()
        # Stop strings that are special tokens are matched by id: decoded text does not contain them.
        self._special_ids = {token.content: i for i, token in self._added.items() if token.special}
        self.size = max(core.get_vocab_size(with_added_tokens=False), max(self._added, default=-1) + 1)
        """One more than the largest token id."""

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        added = max((len(token.content.encode()) for token in self._added.values()), default=1)
        # A character of a byte-level token stands for a byte.
        return max(added, *map(len, self._core.get_vocab(with_added_tokens=False)), 1)

    def encode(
        self, text: str, *, add_special_tokens: bool = True, most_tokens: int | None = None
    ) -> list[int]:
        """Token ids of ``text``; the text of a special token becomes that token.

        Args:
            text: of Unicode characters.
            add_special_tokens: add what the tokenizer puts around a text, such as an initial BOS token; that
                of Qwen2 adds nothing. Not for the text of a chat template, which has written it all.
            most_tokens: refuse a text that is longer, for certain, before it is encoded.

        Raises:
            GenerationError: the text has half a surrogate pair, which is no character, is too long, or is one
                that the library fails on.
        """
        self._check_length(text, most_tokens)
        with _rust_errors(GenerationError, "the tokenizer cannot encode the text"):
            return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_as_text(self, text: str) -> list[int]:
        """Token ids of ``text``, where nothing in it becomes a special or an added token."""
        with _rust_errors(GenerationError, "the tokenizer cannot encode the text"):
            if self._core.normalizer is not None:
                text = self._core.normalizer.normalize_str(text)
            words = [text]
            if self._core.pre_tokenizer is not None:
                words = [word for word, _ in self._core.pre_tokenizer.pre_tokenize_str(text)]
            return [token.id for word in words for token in self._core.model.tokenize(word)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; bytes that are not UTF-8 become U+FFFD."""
        return str(self._core.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token whose text is exactly ``text``, if there is one."""
        return self._special_ids.get(text)

    def added_token_id(self, text: str) -> int | None:
        """Id of the added token, special or not, whose text is exactly ``text``, if there is one."""
        return next((i for i, token in self._added.items() if token.content == text), None)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id that the tokenizer does not have."""
        if token_id in self._added:
            return str(self._added[token_id].content).encode()
        token = self._core.id_to_token(token_id)
        return b"" if token is None else vocabulary_bytes(token)

    def to_json(self) -> str:
        """The tokenizer as the text of a ``tokenizer.json``."""
        return str(self._core.to_str())

    def control_tokens(self, template: str) -> list[str]:
        """Texts of the special tokens, and of other added tokens that a chat template writes."""
        tokens = self._added.values()
        written = (token for token in tokens if token.content in template and not token.content.isspace())
        return list({token.content: None for token in (*filter(lambda t: t.special, tokens), *written)})

    def _check_length(self, text: object, most_tokens: int | None) -> None:
        """Refuse what is no text, and what cannot fit: encoding it would take time and memory for nothing."""
        try:
            length = len(text.encode()) if isinstance(text, str) else None
        except UnicodeEncodeError:
            length = None
        if length is None:
            raise GenerationError(
                f"text must be a string of Unicode characters, found {repr(text)[:80]}"
            ) from None
        if most_tokens is None or length <= most_tokens:
            return
        most = most_tokens * self.longest_token * _NORMALIZED
        if length > most:
            raise GenerationError(
                f"the text has {length} bytes; the engine's capacity of {most_tokens} tokens holds at most "
                f"{most}; shorten it, or build an engine of larger capacity"
            )


@contextmanager
def _rust_errors(kind: type[Q2ExportError], what: str) -> Iterator[None]:
    """Raise what the library raises as ``kind``, and so its panics, which are no ``Exception``.

    Raises:
        Q2ExportError: ``kind``, saying ``what``.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise kind(f"{what}: {error}") from None
        raise


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a folder, or None if it has no ``tokenizer.json``.

    It encodes as transformers does with the two files, or is refused.

    Raises:
        ConfigError: a file is malformed, the tokenizer is not byte-level, the two files disagree, or it would
            encode a text differently from time to time, or without bounds.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    try:
        import tokenizers
    except ImportError:
        raise MissingDependencyError(f"{path} needs the package tokenizers: pip install tokenizers") from None
    with _rust_errors(ConfigError, f"{path}: tokenizers cannot load it"):
        core = tokenizers.Tokenizer.from_file(str(path))
    config = read_tokenizer_config(folder)
    try:
        special_tokens = _special_tokens(config, core)
        apply_rules(core, config)
    except ConfigError as error:
        raise ConfigError(f"{folder}{os.sep}{error}") from None  # it begins with the name of a file
    core.no_padding()
    core.no_truncation()
    return Tokenizer(core, special_tokens)


def read_tokenizer_config(folder: Path) -> dict[str, object]:
    """``tokenizer_config.json`` of a folder; empty if there is none.

    Raises:
        ConfigError: the file is malformed.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    return read_object(path, _MAX_CONFIG_BYTES, ConfigError) if path.is_file() else {}


def _special_tokens(config: Mapping[str, object], core: tokenizers.Tokenizer) -> dict[str, str]:
    """The named special tokens of ``tokenizer_config.json``, each of which must be in ``tokenizer.json``."""
    declared = config.get("added_tokens_decoder") or {}
    if not isinstance(declared, dict):
        raise ConfigError(
            f"{TOKENIZER_CONFIG_FILE}: added_tokens_decoder must be an object, found {declared!r}"
        )
    for key, value in declared.items():
        content = _token_text(f"added_tokens_decoder.{key}", value)
        if str(core.token_to_id(content)) != key:
            found = core.token_to_id(content)
            raise ConfigError(
                f"{TOKENIZER_CONFIG_FILE}: added_tokens_decoder gives {content!r} the id {key}, "
                f"{TOKENIZER_FILE} {'does not have it' if found is None else f'gives it {found}'}; "
                "save the tokenizer again with transformers so that both agree"
            )
    named = {name: _token_text(name, config[name]) for name in _NAMED_TOKENS if config.get(name) is not None}
    for name, content in named.items():
        if core.token_to_id(content) is None:
            raise ConfigError(
                f"{TOKENIZER_CONFIG_FILE}: {name} {content!r} is not a token of {TOKENIZER_FILE}; "
                "save the tokenizer again with transformers so that both agree"
            )
    return named


def _token_text(name: str, value: object) -> str:
    """A token is written as its text or, by older versions, as an object with its text under ``content``."""
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ConfigError(
            f"{TOKENIZER_CONFIG_FILE}: {name} must be a token's text, found {json.dumps(value)}"
        )
    return text
