"""Text that quantization calibrates on, as token ids."""

from __future__ import annotations

from pathlib import Path

from q2export.errors import CalibrationError

SEQUENCE_TOKENS = 512


def calibration_sequences(folder: Path, text: Path, at_most: int, longest: int) -> list[list[int]]:
    """Tokenize the beginning of a text and cut it into sequences.

    Args:
        folder: of the model, whose tokenizer is used.
        text: UTF-8 file.
        at_most: tokens to use.
        longest: tokens the model is made for.

    Raises:
        CalibrationError: there is no tokenizer, or the text cannot be read or is empty.
    """
    from q2export.runtime.tokenizer import TOKENIZER_FILE, load_tokenizer

    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{text}: cannot be read as UTF-8 text: {error}") from error
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise CalibrationError(
            f"{folder}: holds no {TOKENIZER_FILE}, which calibrating on text needs; add it"
        )
    tokens = tokenizer.encode(words)[:at_most]
    if not tokens:
        raise CalibrationError(f"{text}: is empty; give text like that which the model will see")
    length = min(SEQUENCE_TOKENS, longest)
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]
