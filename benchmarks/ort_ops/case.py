"""What an op module hands to the runner, and one variant of it loaded into ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from benchmarks.ort_ops.graph import Float32Array

Feeds = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class Point:
    """One size of input: ``batch`` rows of ``sequence`` new tokens on top of ``past`` cached ones."""

    batch: int = 1
    sequence: int = 1
    past: int = 0

    @property
    def tokens(self) -> int:
        """New tokens of all rows together."""
        return self.batch * self.sequence

    @property
    def label(self) -> str:
        """Short name for tables."""
        past = f" past {self.past}" if self.past else ""
        return f"{self.batch}x{self.sequence}{past}"


@dataclass(frozen=True)
class Variant:
    """One way to write the op.

    Attributes:
        name: how the results call it.
        path: the ONNX file; it has an output ``y``.
        prepack: whether ONNX Runtime may copy weights into its packed layout at load.
        in_place: outputs that share the buffer of an input (KV cache), output name to input name.
        supports: whether the variant is defined at a point.
        tolerance: largest accepted error, relative to the largest absolute value of the reference, of a
            variant that rounds activations; None is the case file's.
    """

    name: str
    path: Path
    prepack: bool = False
    in_place: Mapping[str, str] = field(default_factory=dict)
    supports: Callable[[Point], bool] = lambda point: True
    tolerance: float | None = None


@dataclass(frozen=True)
class OpCase:
    """One op at one size: its variants, the first being the baseline, and what they must compute.

    Attributes:
        feeds: inputs at a point; a variant takes those it declares.
        reference: the expected ``y`` for these inputs, from numpy.
        weight_bytes: bytes of weights one run reads, for the achieved GB/s; 0 if not meaningful.
    """

    op: str
    size: str
    variants: tuple[Variant, ...]
    feeds: Callable[[Point], Feeds]
    reference: Callable[[Feeds], Float32Array]
    weight_bytes: int = 0


class LoadedVariant:
    """A variant in an ONNX Runtime session, inputs and outputs bound once per point."""

    def __init__(self, variant: Variant) -> None:
        options = ort.SessionOptions()
        options.use_per_session_threads = False  # the global pool: idle sessions hold no spinning threads
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # measured as written
        options.add_session_config_entry("session.disable_prepacking", "0" if variant.prepack else "1")
        options.log_severity_level = 3
        self.variant = variant
        start = time.perf_counter()
        self._session = ort.InferenceSession(str(variant.path), options, providers=["CPUExecutionProvider"])
        self.load_seconds = time.perf_counter() - start

    def bind(self, feeds: Feeds) -> None:
        """Bind the inputs of a point; in-place outputs share a fresh copy of their input."""
        self._binding = self._session.io_binding()
        values: dict[str, ort.OrtValue] = {}
        for argument in self._session.get_inputs():
            value = ort.OrtValue.ortvalue_from_numpy(feeds[argument.name].copy())
            values[argument.name] = value
            self._binding.bind_ortvalue_input(argument.name, value)
        for output in self._session.get_outputs():
            shared = self.variant.in_place.get(output.name)
            if shared is None:
                self._binding.bind_output(output.name)
            else:
                self._binding.bind_ortvalue_output(output.name, values[shared])
        self._values = values

    def run(self) -> float:
        """One run; returns its duration in seconds."""
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        return time.perf_counter() - start

    def output(self) -> Float32Array:
        """The ``y`` of the last run."""
        names = [output.name for output in self._session.get_outputs()]
        result: Float32Array = self._binding.get_outputs()[names.index("y")].numpy()
        return result
