"""Text to token ids and back, with the checkpoint's ``tokenizer.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.errors import ConfigError, GenerationError, MissingDependencyError
from q2export.strict.json import read_object

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
_MAX_CONFIG_BYTES = 16 << 20
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
        # Stop strings that are special tokens are matched by id: decoded text does not contain them.
        added = core.get_added_tokens_decoder()
        self._special_ids = {token.content: i for i, token in added.items() if token.special}
        self.size = max(core.get_vocab_size(with_added_tokens=False), max(added, default=-1) + 1)
        """One more than the largest token id."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; the text of a special token becomes that token, and none is added.

        Raises:
            GenerationError: the text has half a surrogate pair, which is no character.
        """
        try:
            return list(self._core.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError):
            found = repr(text)[:80]
            raise GenerationError(f"text must be a string of Unicode characters, found {found}") from None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; bytes that are not UTF-8 become U+FFFD."""
        return str(self._core.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def special_token_id(self, text: str) -> int | None:
        """Id of the special token whose text is exactly ``text``, if there is one."""
        return self._special_ids.get(text)


class IncrementalDetokenizer:
    """Decodes tokens as they come; a character whose bytes are spread over tokens is never shown half.

    The texts returned, joined, equal the decoding of all tokens at once. It relies on the decoding of
    byte-level BPE: the text of two token lists joined is that of their bytes joined.

    Args:
        decode: token ids to text, with U+FFFD for bytes that are not UTF-8.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._pending: list[int] = []  # tokens since the text last ended with a whole character
        self._shown = 0  # characters of the pending tokens' text already returned

    def feed(self, token_id: int) -> str:
        """The text that ``token_id`` completes."""
        self._pending.append(token_id)
        text = self._decode(self._pending)
        # UTF-8 bytes that may yet become a character decode to exactly one U+FFFD, at the end.
        incomplete = text.endswith("\N{REPLACEMENT CHARACTER}")
        certain = text[:-1] if incomplete else text
        new = certain[self._shown :]
        self._shown += len(new)
        if not incomplete:
            self._pending, self._shown = [], 0
        return new

    def flush(self) -> str:
        """The rest, at the end of the text: U+FFFD for an incomplete character, or nothing."""
        rest = self._decode(self._pending)[self._shown :] if self._pending else ""
        self._pending, self._shown = [], 0
        return rest


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Load the tokenizer of a folder, or None if it has no ``tokenizer.json``.

    Raises:
        ConfigError: a file is malformed, the tokenizer is not byte-level, or the two files disagree.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    try:
        import tokenizers
    except ImportError:
        raise MissingDependencyError(
            f"{TOKENIZER_FILE} needs the package tokenizers: pip install tokenizers"
        ) from None
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  (the library raises nothing more precise)
        raise ConfigError(f"{TOKENIZER_FILE}: tokenizers cannot load it: {error}") from None
    if not isinstance(core.decoder, tokenizers.decoders.ByteLevel):
        kind = type(core.decoder).__name__
        raise ConfigError(
            f"{TOKENIZER_FILE}: decoder must be ByteLevel, as in all Qwen2 models, found {kind}"
        )
    core.no_padding()
    core.no_truncation()
    return Tokenizer(core, _special_tokens(read_tokenizer_config(folder), core))


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
