"""The text side of a package: its tokenizer, the defaults of generation and the chat template."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from q2export.errors import ConfigError
from q2export.runtime.chat import ChatTemplate, load_chat_template
from q2export.runtime.generation_config import GenerationDefaults, read_generation_defaults
from q2export.runtime.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSide:
    """What an engine knows of text.

    Attributes:
        tokenizer: None for an engine that knows token ids only.
        defaults: of generation.
        chat_template: None where there is none.
    """

    tokenizer: Tokenizer | None = None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    chat_template: ChatTemplate | None = None


def open_text(folder: Path, vocab_size: int) -> TextSide:
    """Open and check everything about text in a package, or in a checkpoint that is to become one.

    Args:
        folder: with any of ``tokenizer.json``, ``tokenizer_config.json``, ``chat_template.jinja``,
            ``generation_config.json`` and ``config.json``.
        vocab_size: of the engine, the width of its logits.

    Raises:
        ConfigError: a file is malformed, or is of another model than the engine.
        MissingDependencyError: a library they need is not installed.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None and tokenizer.size > vocab_size:
        raise ConfigError(
            f"{folder / TOKENIZER_FILE}: has token ids up to {tokenizer.size - 1}, the engine's vocabulary "
            f"has {vocab_size}; the tokenizer belongs to another model"
        )
    defaults = read_generation_defaults(folder, vocab_size)
    special_tokens = {} if tokenizer is None else tokenizer.special_tokens
    return TextSide(tokenizer, defaults, load_chat_template(folder, special_tokens))


def warn_of_unsupported(folder: Path, defaults: GenerationDefaults) -> None:
    """Log each field of the folder's generation configuration that would change the text, and does not."""
    for name in defaults.unsupported:
        _log.warning("%s: %s is not supported and has no effect", folder / defaults.file, name)
