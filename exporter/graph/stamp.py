"""Emitting a traced program into an ONNX graph, under a path prefix, as often as needed.

Every aten operator the decoder's modules can produce has one translator below; anything else is refused by
name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.errors import ExportError
from q2export.exporter.graph.builder import DimPiece, GraphBuilder
from q2export.exporter.graph.nodes import AttributeValue

aten = torch.ops.aten

_SPEC_BY_TARGET = {
    getattr(getattr(torch.ops, opspec.DOMAIN), spec.torch_name).default: spec
    for spec in (opspec.ROTARY, opspec.ATTENTION, opspec.MOE)
}


def _onnx_type(dtype: torch.dtype) -> ir.DataType:
    return ir.DataType[BY_NAME[str(dtype).removeprefix("torch.")].onnx]


@dataclass
class Stamp:
    """One stamping of a program: where its values are while its nodes are emitted.

    Attributes:
        builder: the graph being built.
        prefix: path of this part, such as ``model.layers.3``.
        values: FX node name -> its ONNX value (lists for multi-output nodes).
        symbols: FX symbol (``s44``) -> name of the graph's dimension (``batch``).
    """

    builder: GraphBuilder
    prefix: str
    values: dict[str, ir.Value | Sequence[ir.Value]] = field(default_factory=dict)
    symbols: dict[str, str] = field(default_factory=dict)

    def value(self, argument: object) -> ir.Value:
        """Return the ONNX value of an FX node argument."""
        if isinstance(argument, torch.fx.Node):
            found = self.values[argument.name]
            if isinstance(found, ir.Value):
                return found
        raise ExportError(f"{self.prefix}: expected a tensor argument, found {argument!r}")

    def path(self, node: torch.fx.Node) -> str:
        """Return the path of the innermost module whose forward made ``node``."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        inner = stack[-1][0] if stack else ""
        return ".".join(part for part in (self.prefix, inner) if part) or self.root

    @property
    def root(self) -> str:
        """Path of nodes that belong to no module; the head, at the top level, calls them by its result."""
        return self.prefix or "logits"

    def dims(self, shape: Sequence[object]) -> list[DimPiece]:
        """Translate FX sizes (ints, symbols, size nodes) to numbers and dimension names."""
        return [self._dim(size) for size in shape]

    def _dim(self, size: object) -> DimPiece:
        if isinstance(size, torch.fx.Node):
            size = size.meta["val"]
        if isinstance(size, torch.SymInt):
            if size.node.expr.is_number:
                return int(size)
            expression = str(size.node.expr)
            for symbol, dim in self.symbols.items():
                expression = expression.replace(symbol, dim)
            return expression
        if isinstance(size, int):
            return size
        raise ExportError(f"{self.prefix}: cannot translate the size {size!r}")


def stamp(
    builder: GraphBuilder,
    program: ExportedProgram,
    prefix: str,
    inputs: Mapping[str, ir.Value],
    rename: Callable[[str], str],
) -> list[ir.Value]:
    """Emit ``program`` once and return its outputs.

    Args:
        builder: the graph to append to.
        program: a traced part.
        prefix: module path of the part; starts the name of every node.
        inputs: value of every user input, by its argument name.
        rename: full parameter path -> initializer name (a tied head becomes the embedding).

    Raises:
        ExportError: the program holds an operator that has no translation; the message names it and the
            module.
    """
    state = Stamp(builder, prefix)
    parameters = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        if node.op == "placeholder":
            _bind_placeholder(state, node, parameters.get(node.name), inputs, rename)
        elif node.op == "call_function":
            _emit(state, node)
        elif node.op == "output":
            return [state.value(argument) for argument in node.args[0]]
    raise ExportError(f"{prefix}: the traced program has no output")


def _bind_placeholder(
    state: Stamp,
    node: torch.fx.Node,
    parameter: str | None,
    inputs: Mapping[str, ir.Value],
    rename: Callable[[str], str],
) -> None:
    fake = node.meta["val"]
    if parameter is not None:
        path = ".".join(part for part in (state.prefix, parameter) if part)
        shape = [int(size) for size in fake.shape]
        state.values[node.name] = state.builder.initializer(rename(path), _onnx_type(fake.dtype), shape)
        return
    value = inputs[node.name]
    state.values[node.name] = value
    for size, dim in zip(fake.shape, value.shape or (), strict=True):
        if isinstance(size, torch.SymInt) and isinstance(dim, ir.SymbolicDim) and dim.value is not None:
            state.symbols[str(size.node.expr)] = str(dim.value)


def _emit(state: Stamp, node: torch.fx.Node) -> None:
    target = node.target
    if target in _IGNORED:
        return
    if target in _SPEC_BY_TARGET:
        _custom_op(state, node, _SPEC_BY_TARGET[target])
    elif target in _TRANSLATORS:
        value = _TRANSLATORS[target](state, node)
        state.values[node.name] = value
        _describe(state, node, value)
    else:
        raise ExportError(
            f"{state.path(node)}: the operator {target} has no ONNX translation (exporter/graph/stamp.py)"
        )


def _describe(state: Stamp, node: torch.fx.Node, value: ir.Value) -> None:
    """Give ``value`` its type and shape, and the module's path for a name where it is the module's result."""
    fake = node.meta.get("val")
    if not isinstance(fake, torch.Tensor) or value.producer() is None or value.shape is not None:
        return
    value.dtype = _onnx_type(fake.dtype)
    value.shape = ir.Shape(state.dims(fake.shape))
    path = state.path(node)
    inside = path + "."
    users = [user for user in node.users if user.op != "output"]
    last = node.op == "call_function" and not any(
        state.path(user) == path or state.path(user).startswith(inside) for user in users
    )
    if last and path != state.root:
        value.name = path


def _custom_op(state: Stamp, node: torch.fx.Node, spec: opspec.OpSpec) -> None:
    arguments = list(node.args)
    fixed = [state.value(argument) for argument in arguments[: len(spec.inputs)]]
    lists = arguments[len(spec.inputs) : len(spec.inputs) + len(spec.repeated)]
    repeated = [state.value(item) for group in zip(*lists, strict=True) for item in group]
    settings = arguments[len(spec.inputs) + len(spec.repeated) :]
    attributes: dict[str, AttributeValue] = {
        "plugin_version": opspec.PLUGIN_VERSION,
        "plugin_namespace": opspec.PLUGIN_NAMESPACE,
    }
    for attribute, setting in zip(spec.attributes, settings, strict=True):
        attributes[attribute.name] = float(setting) if attribute.type == "float" else int(setting)  # type: ignore[arg-type]
    fakes = node.meta["val"] if len(spec.outputs) > 1 else (node.meta["val"],)
    path = state.path(node)
    outputs = []
    for index, fake in enumerate(fakes):
        name = path if index == 0 else f"{path}/{spec.outputs[index].name}"
        shape = ir.Shape(state.dims(fake.shape))
        outputs.append(ir.Value(name=name, type=ir.TensorType(_onnx_type(fake.dtype)), shape=shape))
    state.builder.node(
        spec.name, [*fixed, *repeated], name=f"{path}/{spec.name}", domain=opspec.DOMAIN,
        attributes=attributes, outputs=outputs,
    )  # fmt: skip
    state.values[node.name] = outputs if len(outputs) > 1 else outputs[0]


Translator = Callable[[Stamp, torch.fx.Node], ir.Value]


def _simple(op_type: str) -> Translator:
    """An operator whose tensor arguments are the ONNX inputs, in order."""

    def translate(state: Stamp, node: torch.fx.Node) -> ir.Value:
        inputs = [_tensor_or_dim(state, argument) for argument in node.args]
        return state.builder.op(op_type, inputs, name=f"{state.path(node)}/{op_type}")

    return translate


def _tensor_or_dim(state: Stamp, argument: object) -> ir.Value:
    if isinstance(argument, torch.fx.Node) and isinstance(argument.meta["val"], torch.SymInt):
        return state.builder.shape(state.dims([argument]))
    return state.value(argument)


def _linear(state: Stamp, node: torch.fx.Node) -> ir.Value:
    inputs = [state.value(argument) for argument in node.args]
    return state.builder.op("Gemm", inputs, name=f"{state.path(node)}/Gemm", attributes={"transB": 1})


def _embedding(state: Stamp, node: torch.fx.Node) -> ir.Value:
    weight, ids = (state.value(argument) for argument in node.args)
    return state.builder.op("Gather", [weight, ids], name=f"{state.path(node)}/Gather")


def _rms_norm(state: Stamp, node: torch.fx.Node) -> ir.Value:
    hidden, _, weight, epsilon = node.args
    return state.builder.op(
        "RMSNormalization",
        [state.value(hidden), state.value(weight)],
        name=f"{state.path(node)}/RMSNormalization",
        attributes={"epsilon": float(epsilon), "axis": -1, "stash_type": 1},  # type: ignore[arg-type]
    )


def _silu(state: Stamp, node: torch.fx.Node) -> ir.Value:
    x = state.value(node.args[0])
    sigmoid = state.builder.op("Sigmoid", [x], name=f"{state.path(node)}/Sigmoid")
    sigmoid.type, sigmoid.shape = x.type, x.shape
    return state.builder.op("Mul", [x, sigmoid], name=f"{state.path(node)}/Silu")


def _reshape(state: Stamp, node: torch.fx.Node) -> ir.Value:
    x, sizes = node.args
    pieces = state.dims(sizes)  # type: ignore[arg-type]
    # A size of zero is a size, not "as in the input": no logits may be asked for.
    attributes = {} if -1 in pieces else {"allowzero": 1}
    inputs = [state.value(x), state.builder.shape(pieces)]
    return state.builder.op("Reshape", inputs, name=f"{state.path(node)}/Reshape", attributes=attributes)


def _unsqueeze(state: Stamp, node: torch.fx.Node) -> ir.Value:
    x, axis = node.args
    axes = state.builder.int64([int(axis)])  # type: ignore[arg-type]
    return state.builder.op("Unsqueeze", [state.value(x), axes], name=f"{state.path(node)}/Unsqueeze")


def _arange(state: Stamp, node: torch.fx.Node) -> ir.Value:
    build, path = state.builder, state.path(node)
    limit = build.op("Squeeze", [build.shape(state.dims(node.args))], name=f"{path}/Squeeze")
    return build.op("Range", [build.int64(0), limit, build.int64(1)], name=f"{path}/Range")


def _index_select(state: Stamp, node: torch.fx.Node) -> ir.Value:
    x, axis, index = node.args
    return state.builder.op(
        "Gather",
        [state.value(x), state.value(index)],
        name=f"{state.path(node)}/Gather",
        attributes={"axis": int(axis)},  # type: ignore[arg-type]
    )


def _to(state: Stamp, node: torch.fx.Node) -> ir.Value:
    x, dtype = state.value(node.args[0]), _onnx_type(node.args[1])  # type: ignore[arg-type]
    if x.dtype == dtype:
        return x
    return state.builder.op("Cast", [x], name=f"{state.path(node)}/Cast", attributes={"to": int(dtype)})


def _getitem(state: Stamp, node: torch.fx.Node) -> ir.Value:
    source, index = node.args
    return state.values[source.name][index]  # type: ignore[union-attr,index]


_TRANSLATORS: dict[object, Translator] = {
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    aten.rms_norm.default: _rms_norm,
    aten.silu.default: _silu,
    aten.sigmoid.default: _simple("Sigmoid"),
    aten.mul.Tensor: _simple("Mul"),
    aten.add.Tensor: _simple("Add"),
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.unsqueeze.default: _unsqueeze,
    aten.arange.default: _arange,
    aten.index_select.default: _index_select,
    aten.to.dtype: _to,
    operator.getitem: _getitem,
}
_IGNORED = {aten.sym_size.int, aten._assert_tensor_metadata.default}
