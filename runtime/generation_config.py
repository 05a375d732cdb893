"""The defaults of generation: ``generation_config.json``, or ``config.json`` where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.options import GenerationOptions
from q2export.strict.json import read_object, shown

MAX_BYTES = 1 << 20  # of either file; they are a few hundred bytes

# Fields that name an option of the same name; the rest of GenerationOptions belongs to the caller.
FIELDS = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# Fields of transformers' GenerationConfig that change which tokens come out and are not implemented here,
# with the values at which they do nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "bad_words_ids": (None, []),
    "begin_suppress_tokens": (None, []),
    "encoder_repetition_penalty": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "guidance_scale": (None, 1),
    "max_length": (None, 20),
    "max_time": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "penalty_alpha": (None, 0),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, [], ""),
    "suppress_tokens": (None, []),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1),
    "watermarking_config": (None,),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What holds where the caller says nothing.

    Attributes:
        options: what the file gives, over the defaults of transformers.
        file: its name; empty where there was none.
        eos_token_ids: tokens that end a text; may be empty.
        unsupported: fields of the file that would change the text and are not implemented, as ``name=value``.
    """

    options: GenerationOptions = field(default_factory=GenerationOptions)
    file: str = ""
    eos_token_ids: tuple[int, ...] = ()
    unsupported: tuple[str, ...] = ()


def parse_generation_config(config: Mapping[str, object], where: Path) -> GenerationDefaults:
    """Read the fields this runtime implements. A field that is null counts as absent.

    Args:
        config: contents of ``generation_config.json``.
        where: the file, for messages.

    Raises:
        ConfigError: a field has a wrong type or value.
    """
    given: dict[str, Any] = {key: value for key, value in config.items() if value is not None}
    try:
        options = GenerationOptions(**{name: given[name] for name in FIELDS if name in given})
    except GenerationError as error:
        raise ConfigError(f"{where}: {error}") from None
    return GenerationDefaults(
        file=where.name,
        options=options,
        eos_token_ids=_eos_token_ids(given.get("eos_token_id"), where),
        unsupported=tuple(
            f"{name}={shown(given[name])}"
            for name, idle in UNSUPPORTED.items()
            if name in given and given[name] not in idle
        ),
    )


def read_generation_defaults(folder: Path, vocab_size: int | None = None) -> GenerationDefaults:
    """Read ``generation_config.json`` of a folder; without one, the same fields of its ``config.json``.

    As in transformers, a ``generation_config.json`` without ``eos_token_id`` means that no token ends a text.

    Args:
        folder: of a checkpoint or a package.
        vocab_size: of the engine, which end-of-text tokens must be in; None does not check.

    Raises:
        ConfigError: a file is malformed, or a field has a wrong type or value.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            defaults = parse_generation_config(read_object(path, MAX_BYTES, ConfigError), path)
            outside = [i for i in defaults.eos_token_ids if vocab_size is not None and i >= vocab_size]
            if outside:
                raise ConfigError(
                    f"{path}: eos_token_id {outside[0]} is outside the engine's vocabulary of {vocab_size}"
                )
            return defaults
    return GenerationDefaults()


def _eos_token_ids(value: object, where: Path) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        expected = "a token id, a list of token ids or null"
        raise ConfigError(f"{where}: eos_token_id must be {expected}, found {value!r}")
    return tuple(dict.fromkeys(ids))
