"""Pointing the initializers of a graph at their data, and writing its ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.graph.check import check_structure
from q2export.exporter.weights.bind import Binding, BindingPlan
from q2export.exporter.weights.convert import converted_header


class Place(NamedTuple):
    """Where data lie: a path relative to the folder of the ONNX file, and the first byte."""

    location: str
    offset: int


def places_of(
    plan: BindingPlan, locations: Mapping[Path, str], converted: str | None
) -> dict[Binding, Place]:
    """Where the data of every initializer lie.

    Args:
        plan: its bindings.
        locations: checkpoint file -> its path relative to the folder of the ONNX file.
        converted: path of the converted weights, likewise; None if nothing was converted.

    Raises:
        ExportError: something was to be converted.
    """
    offset = len(converted_header(plan)) if converted is not None else 0
    places = {}
    for binding in plan.bindings:
        if binding.in_place:
            places[binding] = Place(locations[binding.source.file], binding.source.offset)
        elif converted is not None:
            places[binding] = Place(converted, offset)
            offset += binding.nbytes
        else:
            raise ExportError(f"initializer {binding.name!r} was to be converted, but nothing was written")
    return places


def attach(model: ir.Model, plan: BindingPlan, places: Mapping[Binding, Place]) -> None:
    """Point every initializer at its data, as ONNX external data.

    Args:
        model: the graph that was planned for.
        plan: its bindings.
        places: of these, and perhaps of others.
    """
    for binding in plan.bindings:
        value = model.graph.initializers[binding.name]
        place = places[binding]
        value.const_value = ir.ExternalTensor(
            place.location,
            place.offset,
            binding.nbytes,
            value.dtype or ir.DataType.FLOAT,
            shape=ir.Shape(binding.shape),
            name=binding.name,
        )


def serialize(model: ir.Model) -> bytes:
    """The ONNX file of a graph whose weights are attached, after onnx.checker has passed it.

    Raises:
        ExportError: the checker refuses the graph, which is a fault of the exporter.
    """
    proto = ir.to_proto(model)
    check_structure(proto)
    data: bytes = proto.SerializeToString()
    if len(data) >= onnx.checker.MAXIMUM_PROTOBUF:
        raise ExportError(f"the graph alone takes {len(data)} bytes, more than a protobuf file may have")
    return data
