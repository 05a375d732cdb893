"""Inputs and outputs of an engine as files, in the JSON format of NVIDIA's Polygraphy.

``polygraphy run MODEL --onnxrt --load-inputs INPUTS --load-outputs OUTPUTS`` feeds the inputs and compares
with the outputs. Both files hold one entry per iteration (one set of tensors).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from q2export.contracts.commands import install_command
from q2export.errors import MissingDependencyError

Tensors = Mapping[str, npt.NDArray[Any]]


def save_inputs(path: Path, feeds: Sequence[Tensors]) -> None:
    """Write input tensors, one mapping of name to array per iteration.

    Raises:
        MissingDependencyError: polygraphy is not installed.
    """
    to_json = _polygraphy("polygraphy.json").to_json
    _write_quietly(path, lambda: to_json([dict(feed) for feed in feeds]))


def save_outputs(path: Path, runner: str, outputs: Sequence[Tensors]) -> None:
    """Write output tensors, one mapping of name to array per iteration, as results of the runner so named.

    Raises:
        MissingDependencyError: polygraphy is not installed.
    """
    comparator = _polygraphy("polygraphy.comparator")

    def encode() -> str:
        iterations = [
            comparator.IterationResult(outputs=dict(tensors), runner_name=runner) for tensors in outputs
        ]
        text: str = comparator.RunResults([(runner, iterations)]).to_json()
        return text

    _write_quietly(path, encode)


def _polygraphy(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"golden files are in polygraphy's format, and it cannot be imported ({error}); "
            f"install it with: {install_command('export')}"
        ) from error


def _write_quietly(path: Path, encode: Callable[[], str]) -> None:
    """Write without polygraphy's log, which goes to standard output, where ``--json`` belongs."""
    logger = _polygraphy("polygraphy.logger").G_LOGGER
    with logger.verbosity(logger.CRITICAL + 1):
        path.write_text(encode(), encoding="utf-8")
