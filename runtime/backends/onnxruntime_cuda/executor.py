"""A graph in ONNX Runtime on a stream of ours, over memory of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q2export.contracts.step import LOGITS
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.cuda.executor import DeviceTensor
from q2export.runtime.backends.cuda.steps import Bounds, StepProfile
from q2export.runtime.backends.onnxruntime_session import CACHE_ELEMENT_TYPES

PREFILL, DECODE = 0, 1


class OnnxRuntimeExecutor:
    """An :class:`~q2export.runtime.backends.cuda.executor.Executor` over an ONNX Runtime session."""

    def __init__(
        self,
        info: EngineInfo,
        session: Any,
        run_options: Any,
        *,
        max_logits: int,
        device: tuple[str, int],
        captures: bool,
    ) -> None:
        """Prepare bindings.

        Args:
            info: from the manifest.
            session: of the graph, on the GPU, with the backend's stream as its own.
            run_options: that let a run return before the GPU is done, and leave CUDA graphs to us.
            max_logits: positions per row of one call.
            device: what bindings are made for, ``("cuda", 0)``.
            captures: whether a decode step can be part of a CUDA graph.
        """
        self._session = session
        self._run_options = run_options
        self._device = device
        self._captures = captures
        rows, capacity = Bounds(1, info.max_batch), Bounds(1, info.max_capacity)
        widest = Bounds(1, info.prefill_chunk)
        logits = Bounds(1, min(max_logits, info.prefill_chunk))
        one = Bounds(1, 1)
        self._profiles = (
            StepProfile(PREFILL, rows, widest, logits, capacity),
            StepProfile(DECODE, rows, one, one, capacity),
        )
        self._bindings = {profile.index: session.io_binding() for profile in self._profiles}
        cache, signature = CACHE_ELEMENT_TYPES[info.kv_dtype], info.signature
        self._inputs: dict[str, Any] = {
            tensor.name: np.int64 if tensor.dtype == "int64" else cache for tensor in signature.inputs
        }
        self._outputs: dict[str, Any] = {
            tensor.name: np.float32 if tensor.name == LOGITS.name else cache for tensor in signature.outputs
        }

    @property
    def profiles(self) -> Sequence[StepProfile]:
        """One for prefill, one for decode."""
        return self._profiles

    @property
    def captures(self) -> bool:
        """As it was made."""
        return self._captures

    def bind(self, profile: int, tensors: Mapping[str, DeviceTensor]) -> None:
        """See :meth:`q2export.runtime.backends.cuda.executor.Executor.bind`."""
        binding = self._bindings[profile]
        for name, tensor in tensors.items():
            if name in self._inputs:
                binding.bind_input(name, *self._device, self._inputs[name], tensor.shape, tensor.address)
            if name in self._outputs:
                binding.bind_output(name, *self._device, self._outputs[name], tensor.shape, tensor.address)

    def enqueue(self, profile: int) -> None:
        """See :meth:`q2export.runtime.backends.cuda.executor.Executor.enqueue`."""
        try:
            self._session.run_with_iobinding(self._bindings[profile], self._run_options)
        except Exception as error:  # ORT's exceptions share no base class
            raise GenerationError(f"ONNX Runtime cannot run the step: {error}") from error

    def is_capturable(self, profile: int) -> bool:
        """Once a call of the shape has run, all memory of it is there."""
        return True

    def captured(self) -> None:
        """Nothing is to be kept."""

    def release(self) -> None:
        """Close the session."""
        self._bindings.clear()
        self._session = None
