"""One answer of a chat: its tokens to the deltas of a stream, and the deltas to a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from q2export.runtime.results import TokenEvent
from q2export.runtime.server.logprobs import ChatLogprobs
from q2export.runtime.server.tools import ToolCallParser

Json = dict[str, Any]


class ChatChoice:
    """Turns the tokens of one text into deltas; joined, they are its message.

    Args:
        number: its index among the choices.
        parser: finds calls of tools in the text; None leaves it as it is.
        logprobs: writes those of a token; None writes none.
    """

    def __init__(self, number: int, parser: ToolCallParser | None, logprobs: ChatLogprobs | None) -> None:
        self._number = number
        self._parser = parser
        self._logprobs = logprobs
        self._begun = False

    def feed(self, event: TokenEvent) -> list[Json]:
        """The choices of the chunks that a token makes; none while its text is held back."""
        deltas = self._deltas(event)
        entries = [] if self._logprobs is None else self._logprobs.entries(event)
        if not self._begun:
            self._begun = True
            deltas.insert(0, {"role": "assistant", "content": ""})
        if entries and not deltas:
            deltas.append({"content": ""})
        chunks = [self._chunk(delta, None) for delta in deltas]
        if entries:
            chunks[-1]["logprobs"] = {"content": entries, "refusal": None}
        if event.result is not None:
            called = self._parser is not None and self._parser.calls > 0
            reason = event.result.finish_reason
            chunks.append(self._chunk({}, "tool_calls" if called and reason == "stop" else reason))
        return chunks

    def _deltas(self, event: TokenEvent) -> list[Json]:
        if self._parser is None:
            return [{"content": event.text}] if event.text else []
        return self._parser.feed(event.text) + ([] if event.result is None else self._parser.flush())

    def _chunk(self, delta: Json, reason: str | None) -> Json:
        return {"index": self._number, "delta": delta, "logprobs": None, "finish_reason": reason}


@dataclass
class ChatMessage:
    """The message that the deltas of one choice make."""

    content: list[str] = field(default_factory=list)
    tool_calls: list[Json] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, chunks: Sequence[Json]) -> None:
        """Take the next chunks of the choice."""
        for chunk in chunks:
            self.finish_reason = chunk["finish_reason"]
            self.content.append(chunk["delta"].get("content") or "")
            self.logprobs += (chunk["logprobs"] or {}).get("content", [])
            for call in chunk["delta"].get("tool_calls", []):
                if call["index"] == len(self.tool_calls):
                    self.tool_calls.append({**call, "function": dict(call["function"])})
                    del self.tool_calls[-1]["index"]
                else:
                    self.tool_calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]

    def body(self, number: int, with_logprobs: bool) -> Json:
        """The choice of an answer that is not streamed."""
        text = "".join(self.content)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self.tool_calls:
            message |= {"content": text or None, "tool_calls": self.tool_calls}
        return {
            "index": number,
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if with_logprobs else None,
            "finish_reason": self.finish_reason,
        }
