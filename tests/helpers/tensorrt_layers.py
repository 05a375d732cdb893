"""What TensorRT made of an ONNX file, layer by layer, before it builds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from q2export.plugins.tensorrt.builder import Network


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network.

    Attributes:
        name: of the ONNX node it came from, or TensorRT's own. kind: ``"MATRIX_MULTIPLY"``.
        plugin: name of the plugin, for plugin layers.
        inputs, outputs: names of tensors.
        aliases: (output, input) names that share memory.
        weight_bytes: of a constant.
    """

    name: str
    kind: str
    plugin: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    weight_bytes: int


def list_layers(network: Network) -> tuple[Layer, ...]:
    """All layers of a parsed network, in order."""
    return tuple(_layers(network))


def _layers(network: Network) -> Iterator[Layer]:
    trt, definition = network.trt, network.definition
    for index in range(definition.num_layers):
        layer = definition.get_layer(index)
        kind = layer.type
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        input_names = tuple("" if tensor is None else str(tensor.name) for tensor in inputs)
        output_names = tuple(str(tensor.name) for tensor in outputs)
        plugin, weight_bytes = None, 0
        aliases: tuple[tuple[str, str], ...] = ()
        if kind == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # the binding's own way to a derived layer
            plugin = str(layer.plugin.plugin_name)
            aliases = tuple(
                (name, input_names[source])
                for output, name in enumerate(output_names)
                for source in [layer.plugin.get_aliased_input(output)]
                if source >= 0
            )
        elif kind == trt.LayerType.CONSTANT:
            weight_bytes = math.ceil(math.prod(outputs[0].shape) * outputs[0].dtype.itemsize)
        yield Layer(str(layer.name), str(kind.name), plugin, input_names, output_names, aliases, weight_bytes)
