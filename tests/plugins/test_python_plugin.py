"""The generic plugin in TensorRT-RTX: shapes, types, aliases, refusals, and engines of the trained models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from q2export import api
from q2export.contracts import opspec
from q2export.errors import ExportError, MissingDependencyError
from q2export.plugins.tensorrt import kernels
from q2export.plugins.tensorrt.plugin import GenericPlugin, plugin_class
from q2export.plugins.tensorrt.refusals import take_refusals
from q2export.plugins.tensorrt.registry import GenericCreator, register
from tests.plugins.networks import SIZES, Dim, Parsed, attributes_of, dims, load_rtx, one_node

Attributes = dict[str, int | float]
BY_NAME = pytest.mark.parametrize("spec", opspec.ALL, ids=lambda spec: spec.name)


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module = load_rtx()
    register(module)
    return module


@pytest.fixture(autouse=True)
def no_refusals() -> None:
    take_refusals()


def make_plugin(trt: ModuleType, spec: opspec.OpSpec) -> GenericPlugin:
    return plugin_class(trt)(trt, spec, attributes_of(spec), "layers.3/op")


def test_every_op_has_a_creator_and_registering_again_adds_none(trt: ModuleType) -> None:
    registry = trt.get_plugin_registry()
    creators = [registry.get_creator(spec.name, "1", "q2export") for spec in opspec.ALL]
    assert all(isinstance(creator, GenericCreator) for creator in creators)
    count = len(registry.all_creators)
    register(trt)
    assert len(registry.all_creators) == count


class Registry:
    """One that knows some creators already, and takes others or not."""

    def __init__(self, known: Sequence[str], takes: bool) -> None:
        self.known, self.takes, self.added = set(known), takes, list[str]()

    def get_creator(self, name: str, version: str, namespace: str) -> object:
        return object() if name in self.known else None

    def register_creator(self, creator: GenericCreator, namespace: str) -> bool:
        self.added.append(creator.name)
        return self.takes


def test_creators_of_a_loaded_library_stay_and_a_refusal_is_an_error(trt: ModuleType) -> None:
    fake = ModuleType("fake_tensorrt")
    for name in ("IPluginCreatorV3One", "PluginField", "PluginFieldCollection", "PluginFieldType"):
        setattr(fake, name, getattr(trt, name))
    registry = Registry(["Q2MoE", "Q2RotaryEmbedding"], takes=True)
    fake.get_plugin_registry = lambda: registry
    register(fake)
    assert registry.added == ["Q2GroupQueryAttention", "Q2RotaryAttention", "Q2QuantizedMoE"]
    registry = Registry([], takes=False)
    with pytest.raises(ExportError, match="fake_tensorrt refuses a plugin creator for Q2RotaryEmbedding"):
        register(fake)


@BY_NAME
def test_clones_and_capabilities(trt: ModuleType, spec: opspec.OpSpec) -> None:
    plugin = make_plugin(trt, spec)
    copies = (plugin.clone(), plugin.attach_to_context(None))
    for copy in copies:
        assert copy is not plugin
        assert isinstance(copy, trt.IPluginV3)
        assert {field.name: field.data.item() for field in copy.get_fields_to_serialize()} == attributes_of(
            spec
        )
    assert (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace) == (
        spec.name,
        "1",
        "q2export",
    )
    assert plugin.num_outputs == len(spec.outputs)
    for capability in (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD):
        assert plugin.get_capability_interface(capability) is plugin


def test_the_aliasing_table(trt: ModuleType) -> None:
    for spec, expected in (
        (opspec.ROTARY, [-1]),
        (opspec.ATTENTION, [-1, 3, 4]),
        (opspec.ROTARY_ATTENTION, [-1, 3, 4]),
        (opspec.MOE, [-1]),
    ):
        plugin = make_plugin(trt, spec)
        assert [plugin.get_aliased_input(i) for i in range(plugin.num_outputs)] == expected


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Dim]:
    """Sizes that agree with one another; each of the run-time ones is fixed or left open."""
    small = st.integers(1, 9)
    kv_heads = draw(small)
    found: dict[str, Dim] = {
        **{"Hkv": kv_heads, "Hq": kv_heads * draw(small), "D": 2 * draw(small), "E": draw(small)},
        **{"H": draw(small), "I": draw(small)},
    }
    for symbol in ("B", "S", "C", "T"):
        found[symbol] = draw(st.one_of(small, st.just(symbol.lower())))
    return found


@settings(max_examples=60)
@given(st.sampled_from(opspec.ALL), sizes(), st.sampled_from(["FLOAT16", "BFLOAT16", "FLOAT"]))
def test_parsed_shapes_and_types_are_those_of_the_specification(
    trt: ModuleType, spec: opspec.OpSpec, sizes: Mapping[str, Dim], dtype: str
) -> None:
    attributes = attributes_of(spec)
    for name, symbol in (("num_heads", "Hq"), ("num_kv_heads", "Hkv"), ("num_experts", "E")):
        if name in attributes:
            attributes[name] = int(sizes[symbol])
    if "top_k" in attributes:
        attributes["top_k"] = 1
    if spec is opspec.QUANTIZED_MOE:
        sizes = {**sizes, **{name: 32 * int(sizes[name]) for name in "HI"}}  # whole blocks
    parsed = Parsed(trt, one_node(spec, attributes, sizes, TensorProto.DataType.Value(dtype)))
    assert parsed.ok, take_refusals()
    expected = {
        output.name: tuple(-1 if isinstance(size, str) else size for size in dims(output, sizes))
        for output in spec.outputs
    }
    assert parsed.output_shapes() == expected
    (layer,) = parsed.layers(trt.LayerType.PLUGIN_V3)
    names = {"FLOAT16": "HALF", "BFLOAT16": "BF16", "FLOAT": "FLOAT"}
    found = {layer.get_output(i).dtype.name for i in range(len(spec.outputs))}
    assert found == {names[dtype]}
    assert layer.name == "layers.3/op"


HALF, FLOAT, INT32, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


@pytest.mark.parametrize(
    ("spec", "attributes", "inputs", "message"),
    [
        (opspec.ATTENTION, {"num_heads": 5}, {}, "num_heads 5 is not a multiple of num_kv_heads 2"),
        (opspec.ATTENTION, {"num_heads": 8}, {}, "Hq is 6 in input 'query' [?, ?, 6, 8] but 8 in attribute"),
        (opspec.MOE, {"top_k": 4}, {}, "top_k 4 is more than num_experts 3"),
        (opspec.MOE, {"num_experts": 4}, {}, "expected 14 inputs, found 11"),
        (opspec.MOE, {"norm_topk_prob": None}, {}, "'norm_topk_prob' (1: the chosen"),
        (
            opspec.MOE,
            {"top_k": 1.5},
            {},
            "'top_k' (experts each token goes to) must be an integer, found 1.5",
        ),
        (
            opspec.QUANTIZED_MOE,
            {},
            {"gate_up": (INT32, [3, 64, 9])},
            "H is 72 in input 'gate_up' [3, 64, 9] but 64 in input 'hidden' [?, 64]",
        ),
        (
            opspec.QUANTIZED_MOE,
            {},
            {"gate_up_scale": (HALF, [3, 63, 2])},
            "input 'gate_up_scale' [3, 63, 2] has a dimension of 63, which is 2*I for no I",
        ),
        (opspec.QUANTIZED_MOE, {"block_size": 64}, {}, "H is 128 in input 'gate_up_scale' [3, 64, 2]"),
        (
            opspec.QUANTIZED_MOE,
            {},
            {"down_scale": (FLOAT, [3, 64, 1])},
            "input 'down_scale' must be float16, found float32",
        ),
        (opspec.ROTARY, {}, {"inv_freq": (HALF, [4])}, "input 'inv_freq' must be float32, found float16"),
        (opspec.ROTARY, {}, {"inv_freq": (FLOAT, [3])}, "D is 6 in input 'inv_freq' [3] but 8 in input 'x'"),
        (
            opspec.ROTARY,
            {},
            {"x": (INT64, [1, 1, 6, 8])},
            "input 'x' must be float32 or float16 or bfloat16, found int64",
        ),
        (
            opspec.ATTENTION,
            {},
            {"past_lengths": (INT32, ["batch"])},
            "'past_lengths' must be int64, found int32",
        ),
        (
            opspec.ATTENTION,
            {},
            {"past_key": (FLOAT, ["batch", 2, "capacity", 8])},
            "input 'past_key' must be float16, found float32",
        ),
        (
            opspec.ROTARY_ATTENTION,
            {},
            {"past_value": (HALF, ["batch", 2, 8])},
            "input 'past_value' must be [B, Hkv, C, D], found 3 dimensions",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    trt: ModuleType,
    spec: opspec.OpSpec,
    attributes: Mapping[str, float | None],
    inputs: Mapping[str, tuple[int, Sequence[Dim]]],
    message: str,
) -> None:
    merged = {**attributes_of(spec), **attributes}
    given_attributes = {name: value for name, value in merged.items() if value is not None}
    parsed = Parsed(trt, one_node(spec, given_attributes, overrides=inputs))
    assert not parsed.ok
    (refusal,) = take_refusals()
    assert refusal.startswith(f"node 'layers.3/op' ({spec.name}): ")
    assert message in refusal
    assert "export the model again" in refusal
    assert take_refusals() == ()


def configure(trt: ModuleType, parsed: Parsed, shapes: Mapping[str, Sequence[int]]) -> Any:
    """A configuration with one profile of one size; ``shapes`` are those of the dynamic inputs."""
    config = parsed.builder.create_builder_config()
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    profile = parsed.builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return config


def test_run_time_sizes_that_disagree_are_refused_by_the_build(trt: ModuleType) -> None:
    spec = opspec.ROTARY
    parsed = Parsed(trt, one_node(spec, overrides={"position_ids": (INT64, ["other", "sequence"])}))
    assert parsed.ok
    shapes = {"x": (2, 5, 6, 8), "position_ids": (3, 5)}
    assert parsed.builder.build_serialized_network(parsed.network, configure(trt, parsed, shapes)) is None
    (refusal,) = take_refusals()
    assert "node 'layers.3/op' (Q2RotaryEmbedding): B is 3 in input 'position_ids' [3, 5] but 2 in" in refusal


def input_shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Batch 2, 5 new tokens, a cache of 16."""
    by_name = {"input_ids": (2, 5), "past_lengths": (2,), "query_lengths": (2,), "logits_indices": (2, 1)}
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    return {
        tensor.name: by_name.get(tensor.name) or (2, tensor.shape[1], 16, tensor.shape[3])
        for tensor in inputs
    }


@pytest.mark.parametrize(
    ("model", "dtype", "attention", "moe"),
    [("qwen2-tiny", "bfloat16", 5, 0), ("qwen2-moe-tiny", "float16", 4, 4)],
)
def test_exported_checkpoints_become_engines_of_plugins(
    trt: ModuleType,
    checkpoints: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    dtype: str,
    attention: int,
    moe: int,
) -> None:
    api.export(checkpoints / model, tmp_path / "out", target="tensorrt", dtype=dtype)
    called: list[str] = []
    monkeypatch.setattr(GenericPlugin, "enqueue", lambda *arguments: called.append("enqueue"))
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "absent.so")
    parsed = Parsed(trt, str(tmp_path / "out" / "model.onnx"))
    assert parsed.ok, take_refusals()
    kinds = Counter(layer.name.rpartition("/")[2] for layer in parsed.layers(trt.LayerType.PLUGIN_V3))
    assert kinds == Counter({"Q2RotaryAttention": attention, "Q2MoE": moe})
    shapes = input_shapes(parsed.network)
    config = configure(trt, parsed, shapes)
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    assert engine is not None, take_refusals()
    weights = (checkpoints / model / "model.safetensors").stat().st_size
    assert engine.nbytes > weights
    assert called == []  # nothing runs a kernel while building
    packed = bytes(engine)
    for spec in (opspec.ROTARY_ATTENTION, *((opspec.MOE,) if moe else ())):
        assert all(name.encode() in packed for name in (spec.name, *spec.attribute_names()))


def test_the_cache_is_aliased_as_far_as_the_builder_is_concerned(trt: ModuleType) -> None:
    """Without the preview feature it refuses, which it would not if no output were an alias."""
    parsed = Parsed(trt, one_node(opspec.ATTENTION))
    sizes = {**SIZES, "B": 2, "S": 5, "C": 16}
    shapes = {each.name: [int(size) for size in dims(each, sizes)] for each in opspec.ATTENTION.inputs}
    config = configure(trt, parsed, shapes)
    assert parsed.builder.build_serialized_network(parsed.network, config) is not None
    config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, False)
    assert parsed.builder.build_serialized_network(parsed.network, config) is None


@BY_NAME
def test_formats(trt: ModuleType, spec: opspec.OpSpec) -> None:
    """Row-major only; all T alike, F float32, L int64, S float16, P int32."""
    plugin = make_plugin(trt, spec)
    tensors = (*plugin._inputs, *spec.outputs)
    types = {"F": trt.float32, "L": trt.int64, "S": trt.float16, "P": trt.int32}

    def described(graph_type: Any) -> list[Any]:
        linear = trt.TensorFormat.LINEAR
        return [
            SimpleNamespace(desc=SimpleNamespace(type=types.get(t.element_type, graph_type), format=linear))
            for t in tensors
        ]

    for graph_type in (trt.float16, trt.bfloat16, trt.float32):
        good = described(graph_type)
        for pos in range(len(tensors)):
            assert plugin.supports_format_combination(pos, good, len(plugin._inputs))
            for change in ({"format": trt.TensorFormat.CHW32}, {"type": trt.uint8}, {"type": trt.int8}):
                bad = list(good)
                bad[pos] = SimpleNamespace(desc=SimpleNamespace(**{**vars(good[pos].desc), **change}))
                assert not plugin.supports_format_combination(pos, bad, len(plugin._inputs))
    mixed = described(trt.float16)
    mixed[1].desc.type = trt.float32
    if tensors[1].element_type == "T":
        assert not plugin.supports_format_combination(1, mixed, len(plugin._inputs))


def test_without_kernels_an_engine_says_what_to_build(
    trt: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "LIBRARY", tmp_path / "libq2export_kernels.so")
    plugin = make_plugin(trt, opspec.ROTARY)
    shapes = [(2, 5, 6, 8), (2, 5), (4,)]
    described = [SimpleNamespace(dims=shape, type=trt.float16) for shape in shapes]
    with pytest.raises(
        MissingDependencyError, match=r"libq2export_kernels\.so is absent .*; in the source tree: python -m"
    ):
        plugin.enqueue(described, described[:1], [0, 0, 0], [0], 0, 0)
    described[1].dims = (2, 4)
    with pytest.raises(ExportError, match="S is 4 in input 'position_ids'"):
        plugin.enqueue(described, described[:1], [0, 0, 0], [0], 0, 0)
