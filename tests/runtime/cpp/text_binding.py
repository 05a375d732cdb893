"""The text side of ``libq2export`` through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from tests.runtime.cpp.binding import Engine, Library

_Pointer = ctypes.c_void_p
_Size = ctypes.c_size_t


class Span(ctypes.Structure):
    """``q2e_span``."""

    _fields_ = (("start", _Size), ("end", _Size))


class EncodeOptions(ctypes.Structure):
    """``q2e_encode_options``."""

    _fields_ = (
        ("size", _Size),
        ("no_special_tokens_around", ctypes.c_int),
        ("special_tokens_as_text", ctypes.c_int),
        ("most_tokens", _Size),
        ("given", ctypes.POINTER(Span)),
        ("given_count", _Size),
    )


class Tokenizer:
    """A handle of a tokenizer: of a folder, or of an engine."""

    def __init__(self, library: Library, source: Path | Engine) -> None:
        self.library, self.handle = library, _Pointer()
        for name in ("q2e_tokens_ids", "q2e_text_data"):
            getattr(library.c, name).restype = _Pointer
        for name in ("q2e_tokens_count", "q2e_text_bytes"):
            getattr(library.c, name).restype = _Size
        if isinstance(source, Engine):
            library.call("q2e_engine_get_tokenizer", source.handle, ctypes.byref(self.handle))
        else:
            library.call("q2e_tokenizer_open", str(source).encode(), ctypes.byref(self.handle))

    def encode(self, text: bytes, *, given: Sequence[tuple[int, int]] = (), **options: int) -> list[int]:
        """Token ids of UTF-8."""
        spans = (Span * len(given))(*given)
        made = EncodeOptions(ctypes.sizeof(EncodeOptions), given=spans, given_count=len(given), **options)
        tokens = _Pointer()
        self.library.call(
            "q2e_encode", self.handle, text, _Size(len(text)), ctypes.byref(made), ctypes.byref(tokens)
        )
        count = self.library.c.q2e_tokens_count(tokens)
        ids = ctypes.cast(self.library.c.q2e_tokens_ids(tokens), ctypes.POINTER(ctypes.c_int64))
        found = ids[:count] if count else []
        self.library.c.q2e_tokens_release(tokens)
        return found

    def decode(self, token_ids: Sequence[int], keep_special_tokens: bool = False) -> str:
        """Their text."""
        ids, text = (ctypes.c_int64 * len(token_ids))(*token_ids), _Pointer()
        keep = ctypes.c_int(keep_special_tokens)
        self.library.call("q2e_decode", self.handle, ids, _Size(len(token_ids)), keep, ctypes.byref(text))
        size = self.library.c.q2e_text_bytes(text)
        found = ctypes.string_at(self.library.c.q2e_text_data(text), size).decode()
        self.library.c.q2e_text_release(text)
        return found

    def streamed(self, token_ids: Sequence[int]) -> list[str]:
        """What each token shows, and the rest."""
        handle, data, size = _Pointer(), _Pointer(), _Size()
        self.library.call("q2e_detokenizer_create", self.handle, ctypes.byref(handle))
        steps = [("q2e_detokenizer_feed", handle, ctypes.c_int64(token)) for token in token_ids]
        found = []
        for name, *arguments in [*steps, ("q2e_detokenizer_flush", handle)]:
            self.library.call(name, *arguments, ctypes.byref(data), ctypes.byref(size))
            found.append(ctypes.string_at(data, size.value).decode())
        self.library.c.q2e_detokenizer_release(handle)
        return found

    def release(self) -> None:
        """Free it."""
        self.library.c.q2e_tokenizer_release(self.handle)
