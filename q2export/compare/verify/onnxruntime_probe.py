"""The ONNX Runtime engine under test: its logits, its greedy tokens, and its intermediate tensors.

A session is opened for each question and closed after it: weights are mapped, so that costs milliseconds, and
while the reference runs the engine takes no memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from q2export.compare.verify.activations import EMBEDDING, HEAD, NORM, WITHIN_LAYER, Activation, layer_path
from q2export.compare.verify.engine_probe import EngineProbe
from q2export.contracts.commands import install_command
from q2export.errors import MissingDependencyError
from q2export.package.manifest import EngineInfo
from q2export.runtime.backends.base import Float32Array
from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend, step_inputs
from q2export.runtime.backends.onnxruntime_session import open_session, run_step

if TYPE_CHECKING:
    import onnx


_ROUNDING = ("int8_activations", "bfloat16_activations")
"""Attributes of our ops that let them round what they multiply."""


class OnnxRuntimeProbe(EngineProbe):
    """The ONNX engine of a package; it shows every activation its graph still has."""

    def __init__(self, folder: Path, engine: EngineInfo, *, threads: int = 0, exact: bool = False) -> None:
        """Remember the package; nothing is loaded yet.

        Args:
            folder: the package.
            engine: from its manifest.
            threads: CPU threads; 0 is one per core.
            exact: matmuls do not round what they multiply.
        """
        super().__init__(
            lambda: OnnxRuntimeBackend(
                folder, engine, threads=threads, graph=self._model().SerializeToString() if exact else None
            )
        )
        self._folder = folder
        self._engine = engine
        self._threads = threads
        self._exact = exact

    def activations(self) -> list[Activation]:
        """The activations of :mod:`.activations` that exist in this engine's graph, in order."""
        model = self._model()
        producers = {name: node for node in model.graph.node for name in node.output}
        wanted: list[tuple[str, int | None]] = [(EMBEDDING, None)]
        for layer in range(self._engine.num_hidden_layers):
            path = layer_path(layer)
            wanted += [(f"{path}.{name}", layer) for name in WITHIN_LAYER]
            wanted.append((path, layer))
        wanted += [(NORM, None), (HEAD, None)]
        found = []
        for name, index in wanted:
            value = _value_of(name, producers)
            if value in producers:
                found.append(Activation(name, index, _op(producers, value)))
        return found

    def capture(self, tokens: Sequence[int], names: Collection[str]) -> dict[str, Float32Array]:
        """Run the engine once, without a cache, with the values of ``names`` exposed."""
        onnx = _onnx()
        model = self._model()
        produced = {name for node in model.graph.node for name in node.output}
        values = {name: _value_of(name, produced) for name in names}
        known = {output.name for output in model.graph.output}
        for value in sorted(set(values.values()) - known):
            model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
        session = open_session(
            model.SerializeToString(),
            threads=self._threads,
            weights_folder=self._folder,
        )
        asked = sorted(set(values.values()))
        feed = step_inputs(self._engine, tokens, np.arange(len(tokens), dtype=np.int64))
        found = dict(zip(asked, run_step(session, asked, feed, self._engine.kv_dtype), strict=True))
        return {name: found[value].reshape(len(tokens), -1) for name, value in values.items()}

    def _model(self) -> onnx.ModelProto:
        model: onnx.ModelProto = _onnx().load(str(self._folder / self._engine.file), load_external_data=False)
        for node in model.graph.node if self._exact else ():
            for attribute in node.attribute:
                if attribute.name in _ROUNDING:
                    attribute.i = 0
        return model


def _value_of(name: str, produced: Collection[str]) -> str:
    """The graph's name of an activation: the same, but for logits and a dense MLP, which ends in a matmul."""
    if name == HEAD:
        return "logits"
    return f"{name}.down_proj" if name.endswith(".mlp") and name not in produced else name


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
            f"comparing layers needs the package onnx; install it with: {install_command('export')}"
        ) from error
    return onnx
