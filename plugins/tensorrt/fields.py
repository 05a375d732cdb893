"""Attributes of an op as plugin fields, both ways, with the checks that TensorRT leaves out.

TensorRT's parser cuts an ONNX integer beyond 32 bits without a word, drops an attribute that the creator does
not declare, and goes on with a warning where one is missing. So the whole set is checked: before parsing by
:func:`check_attributes`, and once more in the creator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from q2export.contracts import opspec
from q2export.contracts.quantization import BITS, BLOCK_SIZES
from q2export.errors import ExportError
from q2export.strict.suggest import nearest

Attributes = Mapping[str, int | float]
"""Checked values by name; floats are float32 values, as in the ONNX file."""

INT32_MAX = 2**31 - 1

_INTEGERS: Mapping[str, Sequence[int]] = {
    "num_heads": range(1, INT32_MAX + 1),
    "num_kv_heads": range(1, INT32_MAX + 1),
    "sliding_window": range(INT32_MAX + 1),
    "num_experts": range(1, INT32_MAX + 1),
    "top_k": range(1, INT32_MAX + 1),
    "norm_topk_prob": range(2),
    "bits": tuple(BITS.values()),
    "block_size": BLOCK_SIZES,
}
"""What integers may be: any of a range, or one of a few."""

_ALSO_ON_NODES = ("plugin_version", "plugin_namespace")


def check_attributes(spec: opspec.OpSpec, values: Mapping[str, object], node: str) -> Attributes:
    """Return the attributes of a node, complete and in range.

    Args:
        spec: the op.
        values: name -> value; ``plugin_version`` and ``plugin_namespace`` may be among them.
        node: name of the node, for the message.

    Raises:
        ExportError: one is missing, unknown, of the wrong type, out of range, or contradicts another.
    """
    known = (*spec.attribute_names(), *_ALSO_ON_NODES)
    for name in values:
        if name not in known:
            raise _refusal(spec, node, f"unknown attribute {name!r}{nearest(name, known)}")
    checked = {each.name: _checked(spec, each, values, node) for each in spec.attributes}
    _check_relations(spec, checked, node)
    return checked


def _checked(
    spec: opspec.OpSpec, attribute: opspec.AttributeSpec, values: Mapping[str, object], node: str
) -> int | float:
    name, expected = attribute.name, f"attribute {attribute.name!r} ({attribute.meaning})"
    if name not in values:
        raise _refusal(spec, node, f"{expected} is missing")
    value = values[name]
    if attribute.type == "int":
        if isinstance(value, bool) or not isinstance(value, int):
            raise _refusal(spec, node, f"{expected} must be an integer, found {value!r}")
        allowed = _INTEGERS[name]
        if value not in allowed:
            printed = " or ".join(map(str, allowed[:3]))
            if isinstance(allowed, range):
                printed = f"in {allowed[0]} .. {allowed[-1]}"
            raise _refusal(spec, node, f"{expected} must be {printed}, found {value}")
        return value
    if not isinstance(value, float):
        raise _refusal(spec, node, f"{expected} must be a float, found {value!r}")
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    if not (math.isfinite(rounded) and rounded > 0):
        raise _refusal(spec, node, f"{expected} must be a positive float32, found {value!r}")
    return rounded


def _check_relations(spec: opspec.OpSpec, values: Attributes, node: str) -> None:
    if "num_kv_heads" in values and values["num_heads"] % values["num_kv_heads"]:
        raise _refusal(
            spec,
            node,
            f"num_heads {values['num_heads']} is not a multiple of num_kv_heads {values['num_kv_heads']}",
        )
    if "top_k" in values and values["top_k"] > values["num_experts"]:
        raise _refusal(
            spec, node, f"top_k {values['top_k']} is more than num_experts {values['num_experts']}"
        )


def _refusal(spec: opspec.OpSpec, node: str, what: str) -> ExportError:
    return ExportError(
        f"node {node!r} ({spec.name}): {what}; export the model again with this version of q2export "
        f"(op contract {opspec.CONTRACT_VERSION})"
    )


def declared(trt: ModuleType, spec: opspec.OpSpec) -> Any:
    """Return the ``PluginFieldCollection`` of names and types that a creator declares."""
    types = {"int": trt.PluginFieldType.INT32, "float": trt.PluginFieldType.FLOAT32}
    return trt.PluginFieldCollection(
        [trt.PluginField(each.name, b"", types[each.type]) for each in spec.attributes]
    )


class SerializedFields:
    """Attributes as an engine stores them: one int32 or float32 each, what the ONNX parser hands over too.

    Keeps the memory that the fields point into, so it must live as long as :attr:`collection` is in use.
    """

    def __init__(self, trt: ModuleType, spec: opspec.OpSpec, values: Attributes) -> None:
        dtypes: dict[str, type[np.generic]] = {"int": np.int32, "float": np.float32}
        types = {"int": trt.PluginFieldType.INT32, "float": trt.PluginFieldType.FLOAT32}
        self._data: list[npt.NDArray[Any]] = [
            np.array([values[each.name]], dtypes[each.type]) for each in spec.attributes
        ]
        self.collection: Any = trt.PluginFieldCollection(
            [
                trt.PluginField(each.name, data, types[each.type])
                for each, data in zip(spec.attributes, self._data, strict=True)
            ]
        )


def attributes_from_fields(spec: opspec.OpSpec, fields: Iterable[Any], node: str) -> Attributes:
    """Read what a creator is given, from the ONNX parser or from a serialized engine.

    Raises:
        ExportError: as :func:`check_attributes`, and where a field holds anything but one number.
    """
    values: dict[str, object] = {}
    for field in fields:
        data = np.asarray(field.data)
        if data.size != 1 or data.dtype.kind not in "if":
            found = f"{data.size} values of {data.dtype}"
            raise _refusal(spec, node, f"attribute {field.name!r} must be one number, found {found}")
        values[field.name] = data.item()
    return check_attributes(spec, values, node)
