"""The one TensorRT plugin class of all ops: the specification says what an op is, the kernels do it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType, new_class
from typing import Any

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME, BY_TENSORRT
from q2export.errors import ExportError
from q2export.plugins.tensorrt import kernels
from q2export.plugins.tensorrt.fields import Attributes, SerializedFields
from q2export.plugins.tensorrt.refusals import recorded
from q2export.plugins.tensorrt.shapes import Shape, bind_symbols, input_specs, output_places
from q2export.plugins.tensorrt.workspace import ALIGNMENT, aligned, reserved_bytes

_INTERFACES = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuildV2", "IPluginV3OneRuntime")
_NOT_ALIASED = -1
_PREPARED_CALLS = 64  # shapes whose call a plugin keeps


@cache
def plugin_class(trt: ModuleType) -> type[GenericPlugin]:
    """Return the class for one TensorRT module: :class:`GenericPlugin` over the interfaces of that module."""
    interfaces = tuple(getattr(trt, name) for name in _INTERFACES)
    made: type[GenericPlugin] = new_class("Q2ExportPlugin", (GenericPlugin, *interfaces))
    made.__module__ = __name__
    return made


class GenericPlugin:
    """The methods of ``IPluginV3`` and its three capabilities, for any op of the specification.

    Instances are made of :func:`plugin_class`. What is wrong with a node is raised as ExportError in the
    first callback that sees it, and kept for :func:`q2export.plugins.tensorrt.refusals.take_refusals`.

    Args:
        trt: the TensorRT module.
        spec: the op.
        attributes: of the node, checked.
        node: name of the node.
    """

    def __init__(self, trt: ModuleType, spec: opspec.OpSpec, attributes: Attributes, node: str) -> None:
        for name in _INTERFACES:
            getattr(trt, name).__init__(self)
        self.plugin_name = spec.name
        self.plugin_version = opspec.PLUGIN_VERSION
        self.plugin_namespace = opspec.PLUGIN_NAMESPACE
        self.num_outputs = len(spec.outputs)
        self._trt = trt
        self._spec = spec
        self._attributes = attributes
        self._node = node
        self._inputs = input_specs(spec, attributes)
        self._prepared: dict[object, kernels.PreparedCall] = {}
        self._serialized = SerializedFields(trt, spec, attributes)

    def clone(self) -> GenericPlugin:
        """Return another instance for the same node; there is no state but the arguments."""
        return plugin_class(self._trt)(self._trt, self._spec, self._attributes, self._node)

    def get_capability_interface(self, type: Any) -> GenericPlugin:
        """Return itself: one object is core, build and runtime."""
        return self

    def attach_to_context(self, resource_context: Any) -> GenericPlugin:
        """Return a clone: nothing is shared between contexts."""
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        """Return the attributes; the creator reads them back."""
        return self._serialized.collection

    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        """Return the type of each output, having checked those of the inputs."""
        with recorded():
            graph_type = self._graph_type(input_types)
        return [
            graph_type if output.has_graph_type else self._types(output.element_type)[0]
            for output in self._spec.outputs
        ]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Any, expr_builder: Any) -> list[Any]:
        """Return the shape of each output as expressions in those of the inputs, which are checked."""
        expressions = [list(dims) for dims in inputs]
        known = [
            [dim.get_constant_value() if dim.is_constant() else None for dim in dims] for dims in expressions
        ]
        self._bind(known)
        return [
            self._trt.DimsExprs([expressions[place.index][place.axis] for place in output])
            for output in output_places(self._spec)
        ]

    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        """Row-major tensors; fp16, bf16 or fp32, the same for all that have the graph's type."""
        tensors = (*self._inputs, *self._spec.outputs)
        allowed = self._types(tensors[pos].element_type)
        if tensors[pos].has_graph_type and pos > 0:
            allowed = [in_out[0].desc.type]  # the first input of every op is a T
        found = in_out[pos].desc
        return found.format == self._trt.TensorFormat.LINEAR and found.type in allowed

    def get_aliased_input(self, index: int) -> int:
        """Return the index of the input that output ``index`` updates in place, -1 for none."""
        output = self._spec.outputs[index].name
        for name, source in self._spec.aliases:
            if name == output:
                return self._spec.input_names().index(source)
        return _NOT_ALIASED

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Check the largest shapes of the profile."""
        self._bind([tuple(each.max) for each in inputs])

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Check the shapes that come next."""
        self._bind([tuple(each.dims) for each in inputs])

    def get_valid_tactics(self) -> list[int]:
        """Return none: the kernels choose for themselves."""
        return []

    def set_tactic(self, tactic: int) -> None:
        """Take the default tactic; there is no other."""

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Return the bytes for the largest shapes of the profile."""
        sizes = self._bind([tuple(each.max) for each in inputs])
        reserved = reserved_bytes(self._spec, sizes, self._attributes)
        return reserved + ALIGNMENT if reserved else 0

    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Queue the op on ``stream``.

        Raises:
            MissingDependencyError: the CUDA kernels are not built here.
            GenerationError: they refuse the call.
        """
        # The experts' weights keep the shapes they have in the graph; the other inputs tell calls apart.
        fixed = input_desc[: len(self._spec.inputs)]
        key = (input_desc[0].type, *[tuple(each.dims) for each in fixed])
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepare(input_desc)
            if len(self._prepared) >= _PREPARED_CALLS:
                self._prepared.clear()
            self._prepared[key] = prepared
        prepared.launch(inputs, outputs, aligned(workspace), stream)

    def _prepare(self, input_desc: Sequence[Any]) -> kernels.PreparedCall:
        return kernels.prepare(
            kernels.Call(
                spec=self._spec,
                sizes=self._bind([tuple(each.dims) for each in input_desc]),
                attributes=self._attributes,
                dtype=BY_TENSORRT[input_desc[0].type.name].name,
                node=self._node,
            )
        )

    def _bind(self, shapes: Sequence[Shape]) -> dict[str, int]:
        with recorded():
            return dict(bind_symbols(self._spec, self._attributes, shapes, self._node))

    def _types(self, element_type: opspec.ElementType) -> list[Any]:
        """What TensorRT calls the types a tensor of the specification may have."""
        names = opspec.PLUGIN_TYPES[element_type]
        return [getattr(self._trt.DataType, BY_NAME[name].tensorrt) for name in names]

    def _graph_type(self, types: Sequence[Any]) -> Any:
        """The graph's floating-point type.

        Raises:
            ExportError: the number of inputs or the type of one is wrong, or two that should be alike differ.
        """
        if len(types) != len(self._inputs):
            raise ExportError(
                f"node {self._node!r} ({self._spec.name}): expected {len(self._inputs)} inputs, found "
                f"{len(types)}; export the model again"
            )
        names = [BY_TENSORRT[each.name].name if each.name in BY_TENSORRT else each.name for each in types]
        for tensor, found in zip(self._inputs, names, strict=True):
            allowed = opspec.PLUGIN_TYPES[tensor.element_type]
            if tensor.has_graph_type and names[0] in allowed:
                allowed = (names[0],)
            if found not in allowed:
                raise ExportError(
                    f"node {self._node!r} ({self._spec.name}): input {tensor.name!r} must be "
                    f"{' or '.join(allowed)}, found {found}; export the model again"
                )
        return types[0]
