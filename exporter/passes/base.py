"""What a pass is, and how a list of passes is run."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
import onnx_ir as ir

from q2export.contracts.progress import progress_bar
from q2export.errors import ExportError
from q2export.exporter.graph import nodes
from q2export.exporter.graph.nodes import AttributeValue

_log = logging.getLogger(__name__)


@dataclass
class PassResult:
    """What a pass did.

    Attributes:
        name: class name of the pass.
        matched: places it rewrote.
        refused: one line per place that looked like a match and was left alone, with the reason.
    """

    name: str
    matched: int = 0
    refused: list[str] = field(default_factory=list)


class Pass(ABC):
    """One rewrite of the graph, in place."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Check :meth:`requires`, rewrite, then check :meth:`ensures`.

        Raises:
            ExportError: a precondition does not hold, or a postcondition, then with why places were left.
        """
        self.requires(model)
        result = PassResult(type(self).__name__)
        self.rewrite(model, result)
        try:
            self.ensures(model)
        except ExportError as error:
            raise ExportError("; ".join((str(error), *result.refused))) from error
        return result

    def requires(self, model: ir.Model) -> None:  # noqa: B027 - most passes require nothing
        """Raise ExportError where the pass cannot run on ``model``."""

    @abstractmethod
    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite ``model`` and count in ``result``."""

    def ensures(self, model: ir.Model) -> None:  # noqa: B027
        """Raise ExportError where the rewritten model is not what the pass promises."""


def run_passes(model: ir.Model, passes: Iterable[Pass]) -> list[PassResult]:
    """Run ``passes`` in order and return what each did."""
    passes, results = list(passes), []
    with progress_bar("lowering", len(passes), "it") as advance:
        for one in passes:
            start = time.perf_counter()
            results.append(one(model))
            seconds = time.perf_counter() - start
            _log.info("%s: %d places, %.2f s", results[-1].name, results[-1].matched, seconds)
            advance(1)
    return results


def nodes_of(graph: ir.Graph, op_type: str, domain: str = "") -> list[ir.Node]:
    """Return the nodes of one op type, in graph order."""
    return [node for node in graph if node.op_type == op_type and node.domain == domain]


def path_of(node: ir.Node) -> str:
    """Path of the module a node belongs to: its name without what follows the last slash."""
    return (node.name or "").rsplit("/", 1)[0]


class Inserter:
    """Inserts nodes into a graph, before one of its nodes and named under a path.

    Args:
        graph: to insert into.
        before: the node that new ones stand before.
        path: starts the names of new nodes, ``PATH/LABEL``; by default that of the module of ``before``.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node, path: str | None = None) -> None:
        self.graph = graph
        self.path = path_of(before) if path is None else path
        self._before = before

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        label: str = "",
        *,
        domain: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | Sequence[int] | None = None,
    ) -> ir.Value:
        """Insert a node with one output and return that.

        Args:
            op_type, inputs, domain, attributes: of the node.
            label: ends its name and that of its output; by default the op type.
            dtype, shape: of the output, where known. :func:`replace` gives those of the old value to a value
                without.
        """
        type_ = None if dtype is None else ir.TensorType(dtype)
        value = ir.Value(type=type_, shape=shape if shape is None else ir.Shape(shape))
        self.node(op_type, inputs, [value], label, domain=domain, attributes=attributes)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[ir.Value],
        label: str = "",
        *,
        domain: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> ir.Node:
        """Insert a node; arguments as in :meth:`op`, outputs without a name take the node's."""
        name = f"{self.path}/{label or op_type}"
        node = nodes.make_node(op_type, inputs, outputs, name=name, domain=domain, attributes=attributes)
        self.graph.insert_before(self._before, node)
        self.graph.opset_imports.setdefault(domain, 1)
        return node

    def under(self, label: str) -> Inserter:
        """Return one that names its nodes under ``PATH/LABEL``."""
        return Inserter(self.graph, self._before, f"{self.path}/{label}")

    def cast(self, value: ir.Value, dtype: ir.DataType, label: str = "Cast") -> ir.Value:
        """Insert a ``Cast``."""
        return self.op("Cast", [value], label, attributes={"to": dtype.value}, dtype=dtype, shape=value.shape)

    def int64(self, values: int | Sequence[int]) -> ir.Value:
        """Return a constant; equal ones are shared."""
        return nodes.int64(self.graph, values)


def replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Value]) -> None:
    """Remove ``node``; ``new`` take over the names, types, shapes, uses and graph outputs of its outputs."""
    for old, value in zip(node.outputs, new, strict=True):
        name = old.name
        value.shape = value.shape if value.shape is not None else old.shape
        value.type = value.type if value.type is not None else old.type
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name = None
        value.name = name
    graph.remove(node, safe=True)


def define(model: ir.Model, function: onnx.FunctionProto) -> None:
    """Give ``model`` the body of one of its ops, in place of one it may have."""
    body = ir.serde.deserialize_function(function)
    model.functions[body.identifier()] = body
    model.graph.opset_imports.setdefault(function.domain, 1)


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads ``value`` if it is the only one and ``value`` is no graph output."""
    consumers = value.consumers()
    return consumers[0] if len(consumers) == 1 and not value.is_graph_output() else None


def attribute_int(node: ir.Node, name: str) -> int:
    """Return a required int attribute."""
    attribute = node.attributes.get(name)
    if attribute is None:
        raise ExportError(f"{node.name}: {node.op_type} lacks the attribute {name!r}")
    return attribute.as_int()


def attribute_float(node: ir.Node, name: str) -> float:
    """Return a required float attribute."""
    attribute = node.attributes.get(name)
    if attribute is None:
        raise ExportError(f"{node.name}: {node.op_type} lacks the attribute {name!r}")
    return attribute.as_float()


def input_of(node: ir.Node, index: int) -> ir.Value:
    """Return a required input."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ExportError(f"{node.name}: {node.op_type} lacks input {index}")
    return value
