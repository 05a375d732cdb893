"""Pointing the initializers of a graph at their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.bind import BindingPlan
from q2export.exporter.convert import converted_header


def attach(model: ir.Model, plan: BindingPlan, locations: Mapping[Path, str], converted: str | None) -> None:
    """Point every initializer at its data, as ONNX external data.

    Args:
        model: the graph that was planned for.
        plan: its bindings.
        locations: checkpoint file -> its path relative to the folder of the ONNX file.
        converted: path of the converted weights, likewise; None if nothing was converted.
    """
    offset = len(converted_header(plan)) if converted is not None else 0
    for binding in plan.bindings:
        value = model.graph.initializers[binding.name]
        if binding.in_place:
            location, where = locations[binding.source.file], binding.source.offset
        elif converted is not None:
            location, where = converted, offset
            offset += binding.nbytes
        else:
            raise ExportError(f"initializer {binding.name!r} was to be converted, but nothing was written")
        value.const_value = ir.ExternalTensor(
            location,
            where,
            binding.nbytes,
            value.dtype or ir.DataType.FLOAT,
            shape=ir.Shape(binding.shape),
            name=binding.name,
        )
