"""Symbolic shapes against real ones."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.plugins.tensorrt.shapes import Place, bind_symbols, input_specs, output_places
from tests.plugins.networks import attributes_of, dims

NUMBERS = {"B": 2, "S": 5, "C": 7, "T": 4, "Hq": 6, "Hkv": 2, "D": 8, "H": 64, "I": 32, "E": 3}


def shapes_of(spec: opspec.OpSpec) -> dict[str, list[int | None]]:
    """Shapes of all inputs, by name."""
    return {
        tensor.name: [int(size) for size in dims(tensor, NUMBERS)]
        for tensor in input_specs(spec, attributes_of(spec))
    }


def bind(spec: opspec.OpSpec, shapes: Sequence[Sequence[int | None]]) -> dict[str, int]:
    return dict(bind_symbols(spec, attributes_of(spec), shapes, "layers.3/op"))


def symbol_of(formula: str) -> str:
    """``H`` of ``H*bits/8``."""
    (symbol,) = set(re.split(r"[*/]", formula)) & set(NUMBERS)
    return symbol


@pytest.mark.parametrize("spec", opspec.ALL, ids=lambda spec: spec.name)
def test_every_symbol_is_found(spec: opspec.OpSpec) -> None:
    used = {symbol_of(size) for tensor in input_specs(spec, attributes_of(spec)) for size in tensor.shape}
    assert bind(spec, list(shapes_of(spec).values())) == {name: NUMBERS[name] for name in used}


@given(st.data())
def test_a_size_that_disagrees_is_found(data: st.DataObject) -> None:
    """Any one size changed is noticed, where the same symbol stands in two places or in an attribute."""
    spec = data.draw(st.sampled_from(opspec.ALL))
    tensors = input_specs(spec, attributes_of(spec))
    shapes = list(shapes_of(spec).values())
    index = data.draw(st.integers(0, len(shapes) - 1))
    axis = data.draw(st.integers(0, len(shapes[index]) - 1))
    symbol = symbol_of(tensors[index].shape[axis])
    places = [symbol for tensor in tensors for each in tensor.shape if symbol_of(each) == symbol]
    size = shapes[index][axis]
    assert size is not None
    shapes[index][axis] = size + 1
    fixed = {"num_heads": "Hq", "num_kv_heads": "Hkv", "num_experts": "E"}
    places += [name for name in spec.attribute_names() if fixed.get(name) == symbol]
    if len(places) == 1:
        bind(spec, shapes)
        return
    with pytest.raises(
        ExportError,
        match=rf"node 'layers\.3/op' \({spec.name}\): ({symbol} is \d+ in .* but \d+ in|.* for no {symbol};)",
    ):
        bind(spec, shapes)


def test_both_places_are_named() -> None:
    shapes = shapes_of(opspec.ATTENTION)
    shapes["value"] = [2, None, 3, 8]
    with pytest.raises(
        ExportError, match=r"Hkv is 3 in input 'value' \[2, \?, 3, 8\] but 2 in attribute 'num_kv_heads'"
    ):
        bind(opspec.ATTENTION, list(shapes.values()))
    shapes = shapes_of(opspec.MOE)
    shapes["down_2"] = [64, 4]
    with pytest.raises(
        ExportError, match=r"I is 4 in input 'down_2' \[64, 4\] but 32 in input 'gate_0' \[32, 64\]"
    ):
        bind(opspec.MOE, list(shapes.values()))


def test_an_odd_head_dim_cannot_be_rotated() -> None:
    shapes = shapes_of(opspec.ROTARY)
    shapes["x"] = [2, 5, 6, 7]
    shapes["inv_freq"] = [3]
    with pytest.raises(ExportError, match=r"D is 6 in input 'inv_freq' \[3\] but 7 in input 'x'"):
        bind(opspec.ROTARY, list(shapes.values()))


def test_unknown_sizes_are_left_open() -> None:
    shapes = [[None] * len(shape) for shape in shapes_of(opspec.ATTENTION).values()]
    assert bind(opspec.ATTENTION, shapes) == {"Hq": 6, "Hkv": 2}


def test_rank_and_number_of_inputs() -> None:
    shapes = shapes_of(opspec.ROTARY)
    shapes["position_ids"] = [2, 5, 1]
    with pytest.raises(ExportError, match=r"input 'position_ids' must be \[B, S\], found 3 dimensions"):
        bind(opspec.ROTARY, list(shapes.values()))
    with pytest.raises(
        ExportError, match=r"expected 11 inputs \(hidden, .*gate_1, up_1, down_1, \.\.\.\), found 8"
    ):
        bind(opspec.MOE, list(shapes_of(opspec.MOE).values())[:-3])


def test_outputs_take_the_shape_of_what_they_update() -> None:
    output, present_key, present_value = output_places(opspec.ROTARY_ATTENTION)
    assert output == [Place(0, 0), Place(0, 1), Place(0, 2), Place(0, 3)]
    assert present_key == [Place(3, axis) for axis in range(4)]
    assert present_value == [Place(4, axis) for axis in range(4)]


def test_an_output_size_that_no_input_has() -> None:
    spec = opspec.OpSpec(
        "Q2Odd", "odd", (opspec.TensorSpec("x", "T", ("B",)),), (opspec.TensorSpec("y", "T", ("Z",)),), ()
    )
    with pytest.raises(ExportError, match="Q2Odd: no input has the size Z"):
        output_places(spec)
