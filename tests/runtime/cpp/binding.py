"""``libq2export`` through ctypes, as a program in another language would call it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STATUS = ("ok", "end", "timeout", "argument", "package", "config", "generation", "dependency", "closed")
STATUS += ("cancelled", "memory", "queue full", "internal")

_Pointer = ctypes.c_void_p
_Size = ctypes.c_size_t


class OpenOptions(ctypes.Structure):
    """``q2e_open_options``."""

    _fields_ = (
        ("size", _Size),
        ("check", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("onnxruntime_library", ctypes.c_char_p),
        ("ops_library", ctypes.c_char_p),
    )


class Prompt(ctypes.Structure):
    """``q2e_prompt``."""

    _fields_ = (("size", _Size), ("token_ids", _Pointer), ("token_count", _Size))


class Event(ctypes.Structure):
    """``q2e_event``."""

    _fields_ = (
        ("size", _Size),
        ("prompt", _Size),
        ("token_id", ctypes.c_int64),
        ("finish_reason", ctypes.c_int),
        ("text", ctypes.c_char_p),
        ("text_bytes", _Size),
        ("logprob", ctypes.c_double),
        ("top_count", _Size),
        ("top_token_ids", ctypes.POINTER(ctypes.c_int64)),
        ("top_logprobs", ctypes.POINTER(ctypes.c_double)),
    )


class RawResult(ctypes.Structure):
    """``q2e_result``."""

    _fields_ = (
        ("size", _Size),
        ("token_ids", ctypes.POINTER(ctypes.c_int64)),
        ("token_count", _Size),
        ("finish_reason", ctypes.c_int),
        ("text", ctypes.c_char_p),
        ("text_bytes", _Size),
        ("stop_string", ctypes.c_char_p),
        ("prompt_tokens", _Size),
        ("prefill_seconds", ctypes.c_double),
        ("time_to_first_token", ctypes.c_double),
        ("decode_seconds", ctypes.c_double),
        ("logprobs", ctypes.POINTER(ctypes.c_double)),
        ("top_count", _Size),
        ("top_token_ids", ctypes.POINTER(ctypes.c_int64)),
        ("top_logprobs", ctypes.POINTER(ctypes.c_double)),
    )


class SchedulerOptions(ctypes.Structure):
    """``q2e_scheduler_options``."""

    _fields_ = (("size", _Size), ("rows", _Size), ("capacity", _Size), ("max_waiting", _Size))


class Q2Error(Exception):
    """A status that is no success, and the message that came with it."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Result:
    """One generated sequence."""

    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[float, ...]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(Event), ctypes.c_void_p)


class Library:
    """The library, and which ONNX Runtime and ops it shall load."""

    def __init__(self, path: Path, onnxruntime: Path, ops: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.onnxruntime, self.ops = onnxruntime, ops
        self.c.q2e_error_message.restype = ctypes.c_char_p
        self.c.q2e_engine_warnings.restype = ctypes.c_char_p
        self.c.q2e_version.restype = ctypes.c_char_p
        self.c.q2e_results_count.restype = _Size

    def call(self, name: str, *arguments: Any, fine: Sequence[str] = ("ok",)) -> str:
        """Call a function that returns a status and takes a place for an error last."""
        error = _Pointer()
        status = STATUS[getattr(self.c, name)(*arguments, ctypes.byref(error))]
        if status in fine:
            assert not error
            return status
        message = self.c.q2e_error_message(error).decode()
        self.c.q2e_error_release(error)
        raise Q2Error(status, message)

    def open(self, package: Path, *, threads: int = 1, check: int = 0) -> Engine:
        """Open a package."""
        options = OpenOptions(
            ctypes.sizeof(OpenOptions), check, threads, str(self.onnxruntime).encode(), str(self.ops).encode()
        )
        handle = _Pointer()
        self.call("q2e_engine_open", str(package).encode(), ctypes.byref(options), ctypes.byref(handle))
        return Engine(self, handle)


def prompt_of(token_ids: Sequence[int]) -> Prompt:
    """A prompt; it keeps its numbers alive."""
    array = (ctypes.c_int64 * len(token_ids))(*token_ids)
    prompt = Prompt(ctypes.sizeof(Prompt), ctypes.cast(array, _Pointer), len(token_ids))
    prompt.keep = array
    return prompt


class Engine:
    """A handle of an engine."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    @property
    def warnings(self) -> str:
        """What the user should know."""
        text: bytes = self.library.c.q2e_engine_warnings(self.handle)
        return text.decode()

    def close(self) -> None:
        """Free the engine, not the handle."""
        self.library.c.q2e_engine_close(self.handle)

    def release(self) -> None:
        """Free both."""
        self.library.c.q2e_engine_release(self.handle)

    def options(self, given: Mapping[str, Any]) -> ctypes.c_void_p:
        """A handle of options."""
        handle, call = _Pointer(), self.library.call
        call("q2e_options_create", ctypes.byref(handle))
        for name, value in given.items():
            key = name.encode()
            if isinstance(value, bool):
                call("q2e_options_set_flag", handle, key, int(value))
            elif isinstance(value, int):
                call("q2e_options_set_integer", handle, key, ctypes.c_int64(value))
            elif isinstance(value, float):
                call("q2e_options_set_number", handle, key, ctypes.c_double(value))
            elif isinstance(value, dict):
                ids = (ctypes.c_int64 * len(value))(*value)
                biases = (ctypes.c_double * len(value))(*value.values())
                call("q2e_options_set_biases", handle, key, ids, biases, _Size(len(value)))
            elif name == "seed":
                seeds = (ctypes.c_uint64 * len(value))(*value)
                call("q2e_options_set_seeds", handle, key, seeds, _Size(len(value)))
            else:
                texts = (ctypes.c_char_p * len(value))(*(text.encode() for text in value))
                call("q2e_options_set_strings", handle, key, texts, _Size(len(value)))
        return handle

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        on_event: Callable[[Event], bool] | None = None,
        **given: Any,
    ) -> list[Result]:
        """Continue prompts; ``on_event`` says whether to go on."""
        made = [prompt_of(prompt) for prompt in prompts]
        array = (Prompt * len(made))(*made)
        options, results = self.options(given), _Pointer()

        def called(event: Any, user: Any) -> int:
            return 0 if on_event is None or on_event(event.contents) else 1

        try:
            self.library.call(
                "q2e_generate",
                self.handle,
                array,
                _Size(len(made)),
                options,
                _CALLBACK(called),
                None,
                ctypes.byref(results),
            )
        finally:
            self.library.c.q2e_options_release(options)
        found = []
        for index in range(self.library.c.q2e_results_count(results)):
            raw = RawResult(ctypes.sizeof(RawResult))
            self.library.call("q2e_results_get", results, _Size(index), ctypes.byref(raw))
            found.append(result_of(raw))
        self.library.c.q2e_results_release(results)
        return found

    def score(self, token_ids: Sequence[int], vocab_size: int) -> npt.NDArray[np.float32]:
        """Logits ``[tokens, vocab]``."""
        logits = np.empty((len(token_ids), vocab_size), np.float32)
        ids = (ctypes.c_int64 * len(token_ids))(*token_ids)
        address = logits.ctypes.data_as(_Pointer)
        self.library.call("q2e_score", self.handle, ids, _Size(len(token_ids)), address)
        return logits

    def stream(self, prompt: Sequence[int], **given: Any) -> Stream:
        """A stream that computes where it is pulled."""
        options, handle = self.options(given), _Pointer()
        try:
            self.library.call(
                "q2e_stream_open", self.handle, ctypes.byref(prompt_of(prompt)), options, ctypes.byref(handle)
            )
        finally:
            self.library.c.q2e_options_release(options)
        return Stream(self.library, handle)


class Stream:
    """A handle of a stream."""

    def __init__(self, library: Library, handle: ctypes.c_void_p) -> None:
        self.library, self.handle = library, handle

    def next(self, timeout_ms: int = -1) -> Event | str:
        """The next event, or the status instead of one."""
        event = Event(ctypes.sizeof(Event))
        status = self.library.call(
            "q2e_stream_next",
            self.handle,
            ctypes.c_int64(timeout_ms),
            ctypes.byref(event),
            fine=("ok", "end", "timeout"),
        )
        return event if status == "ok" else status

    def tokens(self) -> list[int]:
        """All tokens that are left."""
        found = []
        while not isinstance(event := self.next(), str):
            found.append(event.token_id)
        assert event == "end"
        return found

    def result(self) -> Result:
        """The whole result."""
        raw = RawResult(ctypes.sizeof(RawResult))
        self.library.call("q2e_stream_get_result", self.handle, ctypes.byref(raw))
        return result_of(raw)

    def cancel(self) -> None:
        """End it."""
        self.library.c.q2e_stream_cancel(self.handle)

    def release(self) -> None:
        """Free it."""
        self.library.c.q2e_stream_release(self.handle)


class Scheduler:
    """A handle of a scheduler."""

    def __init__(self, engine: Engine, rows: int = 0, capacity: int = 0, max_waiting: int = 0) -> None:
        self.engine, self.library, self.handle = engine, engine.library, _Pointer()
        options = SchedulerOptions(ctypes.sizeof(SchedulerOptions), rows, capacity, max_waiting)
        self.library.call(
            "q2e_scheduler_open", engine.handle, ctypes.byref(options), ctypes.byref(self.handle)
        )

    def submit(self, prompt: Sequence[int], **given: Any) -> Stream:
        """Hand in a prompt."""
        options, stream = self.engine.options(given), _Pointer()
        try:
            made = prompt_of(prompt)
            self.library.call(
                "q2e_scheduler_submit", self.handle, ctypes.byref(made), options, ctypes.byref(stream)
            )
        finally:
            self.library.c.q2e_options_release(options)
        return Stream(self.library, stream)

    def step(self, timeout_ms: int = 0) -> int | None:
        """Compute one step: how many requests are unfinished; None where there was nothing to do."""
        unfinished = _Size()
        wait = ctypes.c_int64(timeout_ms)
        status = self.library.call(
            "q2e_scheduler_step", self.handle, wait, ctypes.byref(unfinished), fine=("ok", "timeout")
        )
        return unfinished.value if status == "ok" else None

    def close(self) -> None:
        """End all requests."""
        self.library.c.q2e_scheduler_close(self.handle)

    def release(self) -> None:
        """Free it."""
        self.library.c.q2e_scheduler_release(self.handle)


def result_of(raw: RawResult) -> Result:
    """A result that needs its handle no more."""
    count = raw.token_count
    logprobs = tuple(raw.logprobs[:count]) if raw.logprobs else ()
    return Result(tuple(raw.token_ids[:count]), ("", "stop", "length")[raw.finish_reason], logprobs)
