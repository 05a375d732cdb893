"""Symbolic shapes of the op specification against real ones: what each symbol is, and what contradicts it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.plugins.tensorrt.fields import Attributes

Shape = Sequence[int | None]
"""Sizes; None where a size is not known yet."""

_BYTES_OF_WORD = 4
"""Of packed codes, which are int32 here."""

_SIZE_OF_ATTRIBUTE = {"num_heads": "Hq", "num_kv_heads": "Hkv", "num_experts": "E"}
"""Attributes that repeat a size of the inputs."""


@dataclass(frozen=True)
class Place:
    """Where a size can be read off: dimension ``axis`` of input ``index``."""

    index: int
    axis: int


def input_specs(spec: opspec.OpSpec, attributes: Attributes) -> list[opspec.TensorSpec]:
    """Return one specification per input of a node, the repeated ones once per expert, by full name.

    Optional inputs are not among them: no plugin takes one.
    """
    repeats = int(attributes["num_experts"]) if spec.repeated else 0
    tensors = (*spec.inputs, *(spec.repeated * repeats))
    fixed = len(spec.inputs)
    names = spec.input_names(repeats)
    names = (*names[:fixed], *names[fixed + len(spec.optional) :])
    return [
        opspec.TensorSpec(name, each.element_type, each.shape)
        for name, each in zip(names, tensors, strict=True)
    ]


def output_places(spec: opspec.OpSpec) -> list[list[Place]]:
    """Return, for each output, where its dimensions are read off.

    An output that updates an input in place has the shape of that input; the others take each symbol from the
    first fixed input that has it.
    """
    names = [each.name for each in spec.inputs]
    aliases = dict(spec.aliases)
    places = []
    for output in spec.outputs:
        if output.name in aliases:
            index = names.index(aliases[output.name])
            places.append([Place(index, axis) for axis in range(len(output.shape))])
        else:
            places.append([_first_place(spec, symbol) for symbol in output.shape])
    return places


def _first_place(spec: opspec.OpSpec, symbol: str) -> Place:
    for index, tensor in enumerate(spec.inputs):
        if symbol in tensor.shape:
            return Place(index, tensor.shape.index(symbol))
    raise ExportError(f"{spec.name}: no input has the size {symbol} of an output")


def bind_symbols(
    spec: opspec.OpSpec, attributes: Attributes, shapes: Sequence[Shape], node: str
) -> Mapping[str, int]:
    """Return the value of every symbol that is known.

    Args:
        spec: the op.
        attributes: of the node, checked.
        shapes: of the inputs, in order.
        node: name of the node, for the message.

    Raises:
        ExportError: the number of inputs or a rank is wrong, or two sizes that must agree do not.
    """
    tensors = input_specs(spec, attributes)
    if len(shapes) != len(tensors):
        raise ExportError(
            f"node {node!r} ({spec.name}): expected {len(tensors)} inputs "
            f"({', '.join(each.name for each in tensors[:8])}{', ...' if len(tensors) > 8 else ''}), "
            f"found {len(shapes)}; export the model again"
        )
    bound: dict[str, int] = {}
    source: dict[str, str] = {}
    for attribute, symbol in _SIZE_OF_ATTRIBUTE.items():
        if attribute in attributes:
            bound[symbol], source[symbol] = int(attributes[attribute]), f"attribute {attribute!r}"
    for symbol, value, where in _sizes(spec, attributes, tensors, shapes, node):
        if symbol not in bound:
            bound[symbol], source[symbol] = value, where
        elif bound[symbol] != value:
            raise ExportError(
                f"node {node!r} ({spec.name}): {symbol} is {value} in {where} but {bound[symbol]} in "
                f"{source[symbol]}; export the model again, or correct the shape"
            )
    return bound


def _sizes(
    spec: opspec.OpSpec,
    attributes: Attributes,
    tensors: Sequence[opspec.TensorSpec],
    shapes: Sequence[Shape],
    node: str,
) -> Iterator[tuple[str, int, str]]:
    """Yield (symbol, value, where it was read) for every known dimension; ``D/2`` = 4 says ``D`` is 8."""
    for tensor, shape in zip(tensors, shapes, strict=True):
        if len(shape) != len(tensor.shape):
            raise ExportError(
                f"node {node!r} ({spec.name}): input {tensor.name!r} must be "
                f"[{', '.join(tensor.shape)}], found {len(shape)} dimensions; export the model again"
            )
        for axis, (formula, size) in enumerate(zip(tensor.shape, shape, strict=True)):
            if size is None:
                continue
            is_words = tensor.element_type == "P" and axis == len(shape) - 1
            symbol, factor = _solved(formula, attributes)
            value = size * (_BYTES_OF_WORD if is_words else 1) * factor
            where = f"input {tensor.name!r} {_printed(shape)}"
            if value.denominator != 1:
                raise ExportError(
                    f"node {node!r} ({spec.name}): {where} has a dimension of {size}, which is {formula} for "
                    f"no {symbol}; export the model again, or correct the shape"
                )
            yield symbol, int(value), where


def _solved(formula: str, attributes: Attributes) -> tuple[str, Fraction]:
    """The symbol of a dimension, and what times the dimension it is; of ``H*bits/8``, ``H`` and 8 / bits."""
    symbol, factor = "", Fraction(1)
    for operator, name in re.findall(r"([*/]?)([^*/]+)", formula):
        if not name.isdigit() and name not in attributes:
            symbol = name
            continue
        number = int(name) if name.isdigit() else int(attributes[name])
        factor *= number if operator == "/" else Fraction(1, number)
    return symbol, factor


def _printed(shape: Shape) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
