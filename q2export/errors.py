"""The error family of q2export.

Every error a user can cause derives from :class:`Q2ExportError`. The command line prints its message,
alone and without a traceback, and exits with 1. A message says what was expected, what was found, where
(file, tensor, node or field), and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Q2ExportError(Exception):
    """Base of all errors that are reported to the user as one message."""


class ConfigError(Q2ExportError):
    """``config.json`` or ``generation_config.json`` is missing, malformed or asks for the unimplemented."""


class CheckpointError(Q2ExportError):
    """A checkpoint folder, index, shard, header or tensor is not what the model needs."""


class OptionError(Q2ExportError):
    """An argument contradicts another one, or means nothing for what is asked.

    Attributes:
        name: of the argument, as in Python; the command line shows its option instead.
        problem: what is wrong with it, ``"has no effect: ..."``.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class ProfileError(Q2ExportError):
    """A profile, or a value that overrides one of it, is malformed or cannot be honoured.

    Attributes:
        advice: overrides that would help, one mapping for each way, ``profile`` being another profile; the
            command line shows the options.
    """

    def __init__(self, message: str, advice: Sequence[Mapping[str, object]] = ()) -> None:
        super().__init__(message)
        self.advice = tuple(advice)


class ExportError(Q2ExportError):
    """Tracing, emission, a pass or a lowering met something it cannot translate."""


class CalibrationError(Q2ExportError):
    """The text to calibrate quantization with is missing, too short, or makes the model overflow."""


class PackageError(Q2ExportError):
    """An engine package cannot be written, or is damaged, incomplete or made for something else."""


class GenerationError(Q2ExportError):
    """A request to a loaded engine is invalid: empty or too long prompt, capacity exhausted, bad option."""


class QueueFullError(GenerationError):
    """A scheduler has as many requests waiting as it takes; try again later."""


class ClosedError(GenerationError):
    """A scheduler takes no more requests, or ended this one, because it is draining or closed."""


class DeadlineError(GenerationError):
    """A request to a scheduler was not done in the time it was given."""


class CancelledError(GenerationError):
    """A request to a scheduler was cancelled; who waits for its result gets this."""


class ParityError(Q2ExportError):
    """The engine differs from the PyTorch reference by more than the profile allows."""


class MissingDependencyError(Q2ExportError):
    """An optional package is needed for what was asked; the message names the extra that installs it."""
