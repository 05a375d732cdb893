"""The bytes that one token stands for, which need not be text."""

from __future__ import annotations

import functools


@functools.cache
def byte_of_character() -> dict[str, int]:
    """GPT-2's byte-level alphabet: the character that each byte is written as in a vocabulary.

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from U+0100 on.
    Source: Radford et al. 2019, ``bytes_to_unicode`` of the GPT-2 encoder.
    """
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(themselves)]
    return {chr(byte): byte for byte in themselves} | {chr(256 + i): byte for i, byte in enumerate(others)}


def vocabulary_bytes(token: str) -> bytes:
    """The bytes of a token of a byte-level vocabulary, ``Ġa`` -> ``b" a"``; of any other text, its UTF-8."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode()
