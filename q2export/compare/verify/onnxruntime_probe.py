"""The ONNX Runtime engine under test: its logits, its greedy tokens, and its intermediate tensors.

A session is opened for each question and closed after it: weights are mapped, so that costs milliseconds, and
while the reference runs the engine takes no memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from q2export.compare.verify.backend_probe import BackendProbe
from q2export.compare.verify.contracts import (
    EMBEDDING_POINT,
    HEAD_POINT,
    NORM_POINT,
    PointInfo,
    residual_point,
)
from q2export.errors import MissingDependencyError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Backend, Float32Array, Int64Array
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend, step_inputs
from q2export.runtime.backends.onnxruntime_session import open_session

if TYPE_CHECKING:
    import onnx

_LAYER_POINTS = (
    "input_layernorm",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.attention",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate",
    "mlp",
)


class OnnxRuntimeProbe(BackendProbe):
    """An :class:`~q2export.compare.verify.contracts.EngineProbe` over the ONNX engine of a package."""

    def __init__(self, folder: Path, engine: EngineInfo, *, threads: int = 0, prepack: bool = False) -> None:
        """Remember the package; nothing is loaded yet.

        Args:
            folder: the package.
            engine: from its manifest.
            threads: CPU threads; 0 is one per core.
            prepack: as the engine will be run: kernels for quantized weights compute otherwise without it.
        """
        super().__init__(
            lambda: OnnxRuntimeBackend(folder, engine, threads=threads, prepack=prepack, prefill_from=1)
        )
        self._folder = folder
        self._engine = engine
        self._threads = threads
        self._prepack = prepack

    def _refill(self, backend: Backend[Any], cache: Any, piece: Int64Array, past: Int64Array) -> None:
        """A prompt that a prefill graph has put into the cache: the logits of the next piece depend on it."""
        if isinstance(backend, OnnxRuntimeBackend) and backend.has_prefill_graph:
            length = np.array([piece.shape[1]], dtype=np.int64)
            backend.forward(cache, piece, past, length, np.empty((1, 0), dtype=np.int64))

    def capture(self, tokens: Sequence[int], points: Collection[str]) -> dict[str, Float32Array]:
        """Run the engine with the values of ``points`` exposed: float32 ``[tokens, width]`` each."""
        onnx = _onnx()
        model = self._model()
        values = {point: self._value_of(model, point) for point in points}
        known = {output.name for output in model.graph.output}
        for value in sorted(set(values.values()) - known):
            model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        session = open_session(
            model.SerializeToString(),
            threads=self._threads,
            prepack=self._prepack,
            weights_folder=self._folder,
        )
        names = sorted(set(values.values()))
        feed = step_inputs(self._engine, tokens, np.arange(len(tokens), dtype=np.int64))
        found = dict(zip(names, session.run(names, feed), strict=True))
        return {point: found[value].reshape(len(tokens), -1) for point, value in values.items()}

    def points(self) -> list[PointInfo]:
        """The points of the contract that exist in this engine's graph, in the order of computation."""
        model = self._model()
        producers = {name: node for node in model.graph.node for name in node.output}
        wanted: list[tuple[str, int | None]] = [(EMBEDDING_POINT, None)]
        for layer in range(self._engine.num_hidden_layers):
            path = residual_point(layer)
            wanted += [(f"{path}.{name}", layer) for name in _LAYER_POINTS]
            wanted.append((path, layer))
        wanted += [(NORM_POINT, None), (HEAD_POINT, None)]
        found = []
        for name, owner in wanted:
            value = self._value_of(model, name)
            if value in producers:
                found.append(PointInfo(name, owner, _op(producers, value)))
        return found

    def _value_of(self, model: onnx.ModelProto, point: str) -> str:
        """The graph's name of a point: the same, but for a dense MLP, which ends in its last product."""
        if point == HEAD_POINT:
            return "logits"
        if point.endswith(".mlp"):
            names = {name for node in model.graph.node for name in node.output}
            return point if point in names else f"{point}.down_proj"
        return point

    def _model(self) -> onnx.ModelProto:
        model: onnx.ModelProto = _onnx().load(str(self._folder / self._engine.file), load_external_data=False)
        return model


def _op(producers: Mapping[str, onnx.NodeProto], value: str) -> str:
    """Op type of what computes ``value``, looking through the reshapes that only rename it."""
    node = producers[value]
    while node.op_type in ("Reshape", "Transpose", "Cast", "CastLike") and node.input[0] in producers:
        node = producers[node.input[0]]
    return str(node.op_type)


def _onnx() -> ModuleType:
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "comparing layers needs the package onnx; install q2export[export]"
        ) from error
    return onnx
