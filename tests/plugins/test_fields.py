"""Attributes as plugin fields: the round trip, and everything that must be refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.plugins.tensorrt import registry
from q2export.plugins.tensorrt.fields import (
    INT32_MAX,
    SerializedFields,
    attributes_from_fields,
    check_attributes,
    declared,
)
from q2export.plugins.tensorrt.preflight import check_onnx
from tests.plugins.networks import Parsed, attributes_of, load_rtx, one_node

SPECS = {spec.name: spec for spec in opspec.ALL}
positive = st.integers(1, INT32_MAX)
floats = st.floats(2.0**-120, 2.0**127, width=32)


@st.composite
def valid_attributes(draw: st.DrawFn, spec: opspec.OpSpec) -> dict[str, int | float]:
    """Any attributes an op takes; integers of all 31 bits."""
    kv_heads = draw(st.integers(1, 2**15))
    experts = draw(positive)
    values: dict[str, int | float] = {
        "num_kv_heads": kv_heads,
        "num_heads": kv_heads * draw(st.integers(1, 2**15)),
        "scale": draw(floats),
        "attention_factor": draw(floats),
        "sliding_window": draw(st.integers(0, INT32_MAX)),
        "num_experts": experts,
        "top_k": draw(st.integers(1, experts)),
        "norm_topk_prob": draw(st.integers(0, 1)),
        "bits": draw(st.sampled_from([4, 8])),
        "block_size": draw(st.sampled_from([32, 64, 128])),
    }
    return {name: values[name] for name in spec.attribute_names()}


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return load_rtx()


@given(st.data())
def test_fields_round_trip(trt: ModuleType, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from(opspec.ALL))
    values = data.draw(valid_attributes(spec))
    packed = SerializedFields(trt, spec, values)
    assert attributes_from_fields(spec, packed.collection, "n") == values
    assert [field.name for field in packed.collection] == list(spec.attribute_names())


@settings(max_examples=20)
@given(st.data())
def test_attributes_survive_the_onnx_parser(trt: ModuleType, data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from([opspec.ATTENTION, opspec.ROTARY_ATTENTION, opspec.ROTARY]))
    values = data.draw(valid_attributes(spec))
    received: list[Mapping[str, int | float]] = []

    def catching(*arguments: object) -> Mapping[str, int | float]:
        received.append(attributes_from_fields(*arguments))
        return received[-1]

    registry.register(trt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "attributes_from_fields", catching)
        sizes = {**{"B": "b", "S": "s", "C": "c"}, "D": 8, "Hq": 2, "Hkv": 1}
        sizes |= {"Hq": values.get("num_heads", 2), "Hkv": values.get("num_kv_heads", 1)}
        Parsed(trt, one_node(spec, values, sizes))
    assert received == [values]


def test_an_engine_holds_the_attributes(trt: ModuleType) -> None:
    """Field types are those of the parser: one creator, and the C++ one too, reads both."""
    spec = opspec.ROTARY_ATTENTION
    fields = list(SerializedFields(trt, spec, attributes_of(spec)).collection)
    kinds = {"int": trt.PluginFieldType.INT32, "float": trt.PluginFieldType.FLOAT32}
    assert [(field.name, field.type, field.size) for field in fields] == [
        (each.name, kinds[each.type], 1) for each in spec.attributes
    ]
    assert [(field.name, field.type) for field in declared(trt, spec)] == [
        (each.name, kinds[each.type]) for each in spec.attributes
    ]


@pytest.mark.parametrize("spec", opspec.ALL, ids=lambda spec: spec.name)
def test_every_attribute_is_required_and_typed(spec: opspec.OpSpec) -> None:
    good = attributes_of(spec)
    assert check_attributes(spec, good, "n") == good
    for each in spec.attributes:
        without = {name: value for name, value in good.items() if name != each.name}
        with pytest.raises(ExportError, match=rf"node 'layers\.3/op' .*{each.name}.* is missing"):
            check_attributes(spec, without, "layers.3/op")
        wrong: object = 0.5 if each.type == "int" else 2
        for value in (wrong, "1", None, [1], True):
            with pytest.raises(ExportError, match=rf"{each.name}.* must be an? (integer|float), found"):
                check_attributes(spec, {**good, each.name: value}, "n")
    with pytest.raises(ExportError, match=r"unknown attribute 'extra'"):
        check_attributes(spec, {**good, "extra": 1}, "n")


@pytest.mark.parametrize(
    ("op", "wrong", "message"),
    [
        ("Q2GroupQueryAttention", {"num_heads": 5}, "num_heads 5 is not a multiple of num_kv_heads 2"),
        ("Q2GroupQueryAttention", {"num_kv_heads": 0}, "must be in 1 .. 2147483647, found 0"),
        ("Q2GroupQueryAttention", {"sliding_window": -1}, "must be in 0 .. 2147483647, found -1"),
        ("Q2GroupQueryAttention", {"sliding_window": 2**31}, "found 2147483648"),
        ("Q2RotaryAttention", {"scale": 0.0}, "scale.* must be a positive float32, found 0.0"),
        ("Q2RotaryAttention", {"scale": math.nan}, "found nan"),
        ("Q2RotaryEmbedding", {"attention_factor": 1e39}, "must be a positive float32, found 1e[+]39"),
        ("Q2RotaryEmbedding", {"attention_factor": 1e-60}, "must be a positive float32, found 1e-60"),
        ("Q2MoE", {"top_k": 4}, "top_k 4 is more than num_experts 3"),
        ("Q2MoE", {"norm_topk_prob": 2}, "must be in 0 .. 1, found 2"),
        ("Q2QuantizedMoE", {"bits": 5}, "must be 4 or 8, found 5"),
        ("Q2QuantizedMoE", {"block_size": 96}, "must be 32 or 64 or 128, found 96"),
        ("Q2QuantizedMoE", {"int8_activations": 1}, "unknown attribute 'int8_activations'"),
        ("Q2MoE", {"bfloat16_activations": 1}, "unknown attribute 'bfloat16_activations'"),
        ("Q2MoE", {"norm_topk": 1}, "unknown attribute 'norm_topk'; did you mean 'norm_topk_prob'"),
    ],
)
def test_wrong_values_are_refused(op: str, wrong: Mapping[str, float], message: str) -> None:
    with pytest.raises(ExportError, match=rf"^node 'a' \({op}\): .*{message}.*; export the model again"):
        check_attributes(SPECS[op], {**attributes_of(SPECS[op]), **wrong}, "a")


class Field:
    """What TensorRT hands a creator."""

    def __init__(self, name: str, data: object) -> None:
        self.name, self.data = name, data


@pytest.mark.parametrize("data", [np.array([1, 2]), np.array([], np.int32), np.array(["x"]), None])
def test_a_field_that_is_not_one_number_is_refused(data: object) -> None:
    with pytest.raises(ExportError, match=r"attribute 'top_k' must be one number, found"):
        attributes_from_fields(opspec.MOE, [Field("top_k", data)], "n")


class TestPreflight:
    def write(self, path: Path, model: onnx.ModelProto) -> Path:
        onnx.save(model, path)
        return path

    def test_counts_the_nodes_that_become_plugins(self, tmp_path: Path) -> None:
        assert check_onnx(self.write(tmp_path / "a.onnx", one_node(opspec.MOE, with_function=True))) == 1

    def test_sees_what_the_parser_would_cut(self, trt: ModuleType, tmp_path: Path) -> None:
        """2**32 + 5 reaches a creator as 5: it cannot know."""
        spec = opspec.ATTENTION
        model = one_node(spec, {**attributes_of(spec), "sliding_window": 2**32 + 5})
        registry.register(trt)
        assert Parsed(trt, model).ok
        with pytest.raises(ExportError, match=r"'layers\.3/op' .*sliding_window.*found 4294967301"):
            check_onnx(self.write(tmp_path / "a.onnx", model))

    def test_sees_what_the_parser_would_drop(self, trt: ModuleType, tmp_path: Path) -> None:
        model = one_node(opspec.ROTARY, {"attention_factor": 1.0, "interleaved": 1})
        registry.register(trt)
        assert Parsed(trt, model).ok
        with pytest.raises(ExportError, match="unknown attribute 'interleaved'"):
            check_onnx(self.write(tmp_path / "a.onnx", model))

    @pytest.mark.parametrize("name", ["plugin_version", "plugin_namespace"])
    def test_a_node_that_would_take_another_plugin_is_refused(self, tmp_path: Path, name: str) -> None:
        model = one_node(opspec.ROTARY)
        for attribute in model.graph.node[0].attribute:
            if attribute.name == name:
                attribute.s = b"other"
        with pytest.raises(ExportError, match=rf"'{name}' must be '.*', found b'other'"):
            check_onnx(self.write(tmp_path / "a.onnx", model))

    def test_other_domains_are_left_alone(self, tmp_path: Path) -> None:
        model = one_node(opspec.ROTARY, {})
        model.graph.node[0].domain = "com.example"
        assert check_onnx(self.write(tmp_path / "a.onnx", model)) == 0
