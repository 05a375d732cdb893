"""Networks of one plugin node, and how to parse them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from q2export.contracts import opspec
from q2export.contracts.quantization import Scheme
from q2export.exporter.graph.ops.functions import IR_VERSION, ONNX_OPSET, function_for
from q2export.plugins.tensorrt.loader import import_tensorrt
from q2export.plugins.tensorrt.shapes import input_specs

Dim = int | str  # a str is a dynamic dimension

ELEMENT_TYPES = {
    "F": TensorProto.FLOAT,
    "L": TensorProto.INT64,
    "S": TensorProto.FLOAT16,
    "P": TensorProto.INT32,
}
ATTRIBUTES: dict[str, int | float] = {
    "num_heads": 6,
    "num_kv_heads": 2,
    "scale": 0.25,
    "sliding_window": 0,
    "attention_factor": 1.0,
    "num_experts": 3,
    "top_k": 2,
    "norm_topk_prob": 0,
    "bits": 4,
    "block_size": 32,
}
SIZES: dict[str, Dim] = {
    **{"B": "batch", "S": "sequence", "C": "capacity", "T": "tokens"},
    **{"Hq": 6, "Hkv": 2, "D": 8, "H": 64, "I": 32, "E": 3},
}


def load_rtx() -> ModuleType:
    """TensorRT-RTX; skips where it is not installed."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'q2export[rtx]'")
    return import_tensorrt("rtx")


def attributes_of(spec: opspec.OpSpec) -> dict[str, int | float]:
    """Valid attributes that agree with :data:`SIZES`."""
    return {name: ATTRIBUTES[name] for name in spec.attribute_names()}


def dims(spec: opspec.TensorSpec, sizes: Mapping[str, Dim]) -> list[Dim]:
    """The shape of a tensor; ``D/2`` is half of ``D``. Packed codes are words of four bytes."""
    shape = [_computed(formula, {**ATTRIBUTES, **sizes}) for formula in spec.shape]
    if spec.element_type == "P":
        shape[-1] = int(shape[-1]) // 4
    return shape


def _computed(formula: str, values: Mapping[str, Dim | float]) -> Dim:
    product = 1
    for operator, name in re.findall(r"([*/]?)([^*/]+)", formula):
        value = int(name) if name.isdigit() else values[name]
        if isinstance(value, str):
            return value
        product = product // int(value) if operator == "/" else product * int(value)
    return product


def one_node(
    spec: opspec.OpSpec,
    attributes: Mapping[str, object] | None = None,
    sizes: Mapping[str, Dim] | None = None,
    dtype: int = TensorProto.FLOAT16,
    with_function: bool = False,
    overrides: Mapping[str, tuple[int, Sequence[Dim]]] | None = None,
) -> onnx.ModelProto:
    """A model of one node named ``layers.3/op``, its inputs and outputs those of the graph.

    ``overrides`` replaces type and shape of inputs, by name; ``with_function`` adds the function body.
    """
    attributes, sizes = attributes_of(spec) if attributes is None else attributes, sizes or SIZES
    repeats = int(str(sizes["E"])) if spec.repeated else 0
    inputs = []
    for tensor in input_specs(spec, {"num_experts": repeats}):
        name = tensor.name
        kind, shape = ELEMENT_TYPES.get(tensor.element_type, dtype), dims(tensor, sizes)
        kind, shape = (overrides or {}).get(name, (kind, shape))
        inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
    outputs = [helper.make_tensor_value_info(each.name, dtype, None) for each in spec.outputs]
    node = helper.make_node(
        spec.name,
        [i.name for i in inputs],
        [o.name for o in outputs],
        name="layers.3/op",
        domain=opspec.DOMAIN,
    )
    marks = {"plugin_version": opspec.PLUGIN_VERSION, "plugin_namespace": opspec.PLUGIN_NAMESPACE}
    for key, value in {**attributes, **marks}.items():
        node.attribute.append(helper.make_attribute(key, value))
    return helper.make_model(
        helper.make_graph([node], "one", inputs, outputs),
        opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(opspec.DOMAIN, 1)],
        ir_version=IR_VERSION,
        functions=[function_of(spec, repeats)] if with_function else [],
    )


def function_of(spec: opspec.OpSpec, repeats: int) -> onnx.FunctionProto:
    """The function body that the TensorRT target has."""
    if spec is opspec.QUANTIZED_MOE:
        return function_for(spec, scheme=Scheme(4, 32, True), words=True)
    return function_for(spec, num_experts=repeats)


class Parsed:
    """A parsed network with all that must outlive it."""

    def __init__(self, trt: ModuleType, model: onnx.ModelProto | str) -> None:
        self._logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        self.builder = trt.Builder(self._logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.network: Any = self.builder.create_network(flags)
        self._parser = trt.OnnxParser(self.network, self._logger)
        parse = self._parser.parse_from_file if isinstance(model, str) else self._parser.parse
        self.ok: bool = parse(model if isinstance(model, str) else model.SerializeToString())

    def layers(self, kind: Any) -> list[Any]:
        """The layers of one type."""
        all_layers = [self.network.get_layer(i) for i in range(self.network.num_layers)]
        return [layer for layer in all_layers if layer.type == kind]

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the network's outputs, -1 for a dynamic size."""
        outputs = [self.network.get_output(i) for i in range(self.network.num_outputs)]
        return {output.name: tuple(output.shape) for output in outputs}
