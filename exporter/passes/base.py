"""What a pass is, and how a list of passes is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from q2export.errors import ExportError

AttributeValue = int | float | str | Sequence[int]


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
    return [one(model) for one in passes]


def nodes_of(graph: ir.Graph, op_type: str, domain: str = "") -> list[ir.Node]:
    """Return the nodes of one op type, in graph order."""
    return [node for node in graph if node.op_type == op_type and node.domain == domain]


def insert(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    name: str,
    domain: str = "",
    attributes: Mapping[str, AttributeValue] | None = None,
    outputs: Sequence[ir.Value] | None = None,
) -> ir.Node:
    """Insert a node called ``name`` before another; unnamed outputs take the node's name."""
    values = list(outputs) if outputs is not None else [ir.Value()]
    for index, value in enumerate(values):
        value.name = value.name or (name if len(values) == 1 else f"{name}:{index}")
    node = ir.node(
        op_type, inputs, attributes=dict(attributes or {}), domain=domain, outputs=values, name=name
    )
    graph.insert_before(before, node)
    return node


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


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads ``value`` if it is the only one and ``value`` is no graph output."""
    consumers = value.consumers()
    return consumers[0] if len(consumers) == 1 and not value.is_graph_output() else None


def constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the initializer ``name``, adding it with the data of ``tensor`` at first use."""
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    graph.initializers.add(value)
    return value


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
