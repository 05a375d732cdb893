"""What a tokenizer may do for its text to be that of transformers, and to be computed in bounded time.

Source: ``tokenization_utils_tokenizers.py`` of transformers 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from q2export.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"

# Others replace text by text of any length, or by patterns that take any time. Qwen2's is NFC.
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents"}
_MOST_PARTS = 16
_MOST_ADDED = 8  # tokens around a text

# Of a pattern: escapes and classes, which are one character each; then repetitions, with an end and without.
_ESCAPE = re.compile(r"\\[pP]\{[^}]*\}|\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPETITION = re.compile(r"(?P<endless>[*+]|\{\d*,(?:|\d\d+)\})[+?]?|(?<!\()\?|\{[\d,]+\}")
_MOST_ENDLESS = 2  # in one alternative, as in Qwen2's: time grows with the square of a run of one character
_MOST_REPETITIONS = 6  # in one alternative


def apply_rules(core: tokenizers.Tokenizer, config: Mapping[str, object]) -> None:
    """Refuse a tokenizer whose text is not that of transformers, not always the same, or not bounded.

    What it adds around a text is as its post-processor says: transformers, too, ignores ``add_bos_token`` and
    ``add_eos_token`` where there is a ``tokenizer.json``. ``split_special_tokens`` is applied.

    Args:
        core: of ``tokenizer.json``; changed.
        config: ``tokenizer_config.json``.

    Raises:
        ConfigError: naming the file and the field.
    """
    found = _part(core.decoder).get("type")
    if found != "ByteLevel":
        raise ConfigError(
            f"{TOKENIZER_FILE}: decoder must be ByteLevel, as in all Qwen2 models, found {found}"
        )
    if getattr(core.model, "dropout", None):
        raise ConfigError(
            f"{TOKENIZER_FILE}: model.dropout is {core.model.dropout:g}, which is for training: it encodes a "
            "text differently each time; set it to null"
        )
    normalizers = list(_parts(_part(core.normalizer), "normalizers"))
    foreign = [each for each in normalizers if each.get("type") not in _NORMALIZERS]
    if foreign or len(normalizers) > _MOST_PARTS:
        found = foreign[0].get("type") if foreign else f"{len(normalizers)} of them"
        raise ConfigError(
            f"{TOKENIZER_FILE}: normalizer must be one of {', '.join(sorted(_NORMALIZERS))}, "
            f"or a Sequence of at most {_MOST_PARTS}, found {found}"
        )
    _check_prefix_space(core, config)
    splitters = list(_parts(_part(core.pre_tokenizer), "pretokenizers"))
    if len(splitters) > _MOST_PARTS or sum(part.get("type") == "ByteLevel" for part in splitters) > 1:
        raise ConfigError(
            f"{TOKENIZER_FILE}: pre_tokenizer must be a Sequence of at most {_MOST_PARTS}, one of them "
            f"ByteLevel, found {', '.join(str(part.get('type')) for part in splitters[: _MOST_PARTS + 1])}"
        )
    for part in splitters:
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern:
            _check_pattern(pattern["Regex"])
    core.encode_special_tokens = bool(_flag(config, "split_special_tokens"))
    added = core.num_special_tokens_to_add(False)
    if added > _MOST_ADDED:
        raise ConfigError(
            f"{TOKENIZER_FILE}: post_processor adds {added} tokens to a text, the most is {_MOST_ADDED}"
        )


def _check_prefix_space(core: tokenizers.Tokenizer, config: Mapping[str, object]) -> None:
    """Versions of transformers differ in which file they follow: the files must agree."""
    asked = _flag(config, "add_prefix_space")
    if asked is None:
        if not str(config.get("tokenizer_class")).startswith("Qwen2Tokenizer"):
            return
        asked = False  # what transformers takes for this class
    for part in _parts(_part(core.pre_tokenizer), "pretokenizers"):
        found = part.get("add_prefix_space", asked)
        if found != asked:
            raise ConfigError(
                f"{TOKENIZER_CONFIG_FILE}: add_prefix_space is {json.dumps(asked)}, the pre_tokenizer of "
                f"{TOKENIZER_FILE} has {json.dumps(found)}; give both files the same"
            )


def _check_pattern(pattern: str) -> None:
    """Refuse a regular expression whose matching may take exponential or cubic time.

    None of those in use repeats a group, refers back to one, or repeats more than twice in an alternative.
    """
    escapes = _ESCAPE.findall(pattern)
    simple = _CLASS.sub("c", _ESCAPE.sub("c", pattern))
    if any(escape[1] in "123456789kg" for escape in escapes):
        raise _slow(pattern, "refers back to a group")
    if re.search(r"\)(?:[*+]|\{)", simple):
        raise _slow(pattern, "repeats a group")
    depth = place = 0
    endless = repetitions = 0
    while place < len(simple):
        found = _REPETITION.match(simple, place)
        depth += {"(": 1, ")": -1}.get(simple[place], 0)
        if simple[place] == "|" and depth == 0:
            endless = repetitions = 0
        elif found:
            endless, repetitions = endless + bool(found["endless"]), repetitions + 1
        if endless > _MOST_ENDLESS or repetitions > _MOST_REPETITIONS:
            raise _slow(pattern, "repeats too often in one alternative")
        place = found.end() if found else place + 1


def _slow(pattern: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{TOKENIZER_FILE}: pre_tokenizer: the pattern {pattern[:60]!r} {problem}; on some texts it "
        "would take minutes"
    )


def _flag(config: Mapping[str, object], name: str) -> bool | None:
    value = config.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise ConfigError(f"{TOKENIZER_CONFIG_FILE}: {name} must be true or false, found {value!r}")


def _part(component: Any) -> dict[str, Any]:
    """A component of a tokenizer, as ``tokenizer.json`` writes it."""
    if component is None:
        return {}
    part: dict[str, Any] = json.loads(component.__getstate__())
    return part


def _parts(part: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """The component itself, or those of a sequence."""
    if part.get("type") == "Sequence":
        for each in part[name]:
            yield from _parts(each, name)
    elif part:
        yield part
