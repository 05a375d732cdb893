"""Golden inputs and outputs of an engine, in the JSON format of NVIDIA's Polygraphy.

``polygraphy run MODEL --onnxrt --load-inputs INPUTS --load-outputs OUTPUTS`` feeds the inputs and compares
with the outputs. Both files hold one entry per iteration (one set of tensors).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from q2export.errors import MissingDependencyError, ParityError

Tensors = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")


def save_inputs(path: Path, feeds: Sequence[Tensors]) -> None:
    """Write input tensors, one mapping of name to array per iteration.

    Raises:
        MissingDependencyError: if polygraphy is not installed.
    """
    feeds = [dict(feed) for feed in feeds]
    path.write_text(_quietly(lambda: _polygraphy("polygraphy.json").to_json(feeds)), encoding="utf-8")


def load_inputs(path: Path) -> list[dict[str, npt.NDArray[Any]]]:
    """Read what :func:`save_inputs` wrote.

    Raises:
        MissingDependencyError: if polygraphy is not installed.
        ParityError: if the file is missing or is not a list of named arrays.
    """
    feeds = _read(path, _polygraphy("polygraphy.json").from_json)
    if not isinstance(feeds, list) or not all(isinstance(feed, Mapping) for feed in feeds):
        raise ParityError(f"{path}: expected a list of polygraphy feed dictionaries; write it again")
    return [_arrays(path, feed) for feed in feeds]


def save_outputs(path: Path, runner: str, outputs: Sequence[Tensors]) -> None:
    """Write output tensors, one mapping of name to array per iteration, as results of the runner so named.

    Raises:
        MissingDependencyError: if polygraphy is not installed.
    """
    comparator = _polygraphy("polygraphy.comparator")

    def encode() -> str:
        iterations = [
            comparator.IterationResult(outputs=dict(tensors), runner_name=runner) for tensors in outputs
        ]
        text: str = comparator.RunResults([(runner, iterations)]).to_json()
        return text

    path.write_text(_quietly(encode), encoding="utf-8")


def load_outputs(path: Path, runner: str) -> list[dict[str, npt.NDArray[Any]]]:
    """Read the outputs that :func:`save_outputs` wrote for ``runner``.

    Raises:
        MissingDependencyError: if polygraphy is not installed.
        ParityError: if the file is missing, is not polygraphy's, or has no such runner.
    """
    results = _read(path, _polygraphy("polygraphy.comparator").RunResults.from_json)
    names = list(results.keys())
    if runner not in names:
        raise ParityError(f"{path}: no outputs of runner {runner!r}, found {', '.join(names) or 'none'}")
    return [_arrays(path, iteration) for iteration in results[runner]]


def _polygraphy(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"golden files are in polygraphy's format, and it cannot be imported ({error}); "
            f"install it with: pip install 'q2export[export]'"
        ) from error


def _quietly(action: Callable[[], T]) -> T:
    """Run ``action`` without polygraphy's log, which goes to standard output, where ``--json`` belongs."""
    logger = _polygraphy("polygraphy.logger").G_LOGGER
    with logger.verbosity(logger.CRITICAL + 1):
        return action()


def _read(path: Path, decode: Callable[[str], Any]) -> Any:
    polygraphy_error = _polygraphy("polygraphy.exception").PolygraphyException
    try:
        text = path.read_text(encoding="utf-8")
        return _quietly(lambda: decode(text))
    except (OSError, ValueError, KeyError, polygraphy_error) as error:
        raise ParityError(f"{path}: cannot be read as golden data ({error}); write it again") from error


def _arrays(path: Path, tensors: Mapping[str, object]) -> dict[str, npt.NDArray[Any]]:
    arrays = {}
    for name, value in tensors.items():
        if not isinstance(value, np.ndarray):
            raise ParityError(f"{path}: expected {name!r} to be an array, found {type(value).__name__}")
        arrays[name] = value
    return arrays
