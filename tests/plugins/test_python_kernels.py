"""The plugin's ``enqueue`` through the C ABI: the kernels compiled for the host stand in for a GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME, FLOAT_NAMES
from q2export.errors import ExportError, GenerationError, MissingDependencyError
from q2export.exporter.graph.ops.attention import group_query_attention_reference
from q2export.exporter.graph.ops.moe import moe_reference
from q2export.exporter.graph.ops.rotary import rotary_embedding_reference
from q2export.plugins.tensorrt import kernels
from q2export.plugins.tensorrt.plugin import GenericPlugin, plugin_class
from q2export.plugins.tensorrt.registry import register
from q2export.plugins.tensorrt.workspace import reserved_bytes
from tests.host_cuda.compiling import CSRC
from tests.plugins.networks import attributes_of, load_rtx

HEADER = (CSRC / "include" / "q2export" / "kernels.h").read_text(encoding="utf-8")
C_TYPES = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "q2export_dtype": ctypes.c_int32,
    "float": ctypes.c_float,
}


@pytest.fixture(scope="module")
def library(host_kernels: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LIBRARY", host_kernels)
        yield host_kernels


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    module = load_rtx()
    register(module)
    return module


@pytest.mark.parametrize(
    ("name", "mirror"),
    [
        ("rotary_desc", kernels.RotaryDesc),
        ("attention_desc", kernels.AttentionDesc),
        ("attention_tensors", kernels.AttentionTensors),
        ("moe_desc", kernels.MoeDesc),
    ],
)
def test_structures_mirror_the_header(name: str, mirror: type[ctypes.Structure]) -> None:
    found = re.search(rf"typedef struct q2export_{name} \{{(.*?)\}} q2export_{name};", HEADER, re.DOTALL)
    assert found
    body = re.sub(r"/\*.*?\*/", "", found[1], flags=re.DOTALL)
    declared = [line.split() for line in body.replace("*", "* ").split(";") if line.strip()]
    expected = [
        (words[-1], ctypes.c_void_p if "*" in "".join(words) else C_TYPES[words[0]]) for words in declared
    ]
    assert [(field[0], field[1]) for field in mirror._fields_] == expected


def test_the_version_and_types_mirror_the_header() -> None:
    numbers = {key: int(value) for key, value in re.findall(r"(Q2EXPORT_\w+)(?: =)? (\d+)", HEADER)}
    assert numbers["Q2EXPORT_KERNELS_ABI_VERSION"] == kernels.ABI_VERSION
    for name in FLOAT_NAMES:
        assert BY_NAME[name].kernel_code == numbers[f"Q2EXPORT_{name.upper()}"]
    for spec in opspec.ALL:
        assert f" q2export_{spec.torch_name}(" in HEADER
        assert f" q2export_{spec.torch_name}_workspace_size(" in HEADER


def enqueue(
    trt: ModuleType, plugin: GenericPlugin, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """Run a plugin on host memory, with the workspace an engine would reserve, at an odd address."""
    names = {
        **{torch.float16: "HALF", torch.bfloat16: "BF16"},
        **{torch.float32: "FLOAT", torch.int64: "INT64"},
    }
    described = [
        [
            SimpleNamespace(
                dims=tuple(t.shape), max=tuple(t.shape), type=getattr(trt.DataType, names[t.dtype])
            )
            for t in each
        ]
        for each in (inputs, outputs)
    ]
    bytes_needed = plugin.get_workspace_size(*described)
    workspace = torch.full((bytes_needed + 512,), 0xFF, dtype=torch.uint8)
    start = -workspace.data_ptr() % 256 + 1
    addresses = [[tensor.data_ptr() for tensor in each] for each in (inputs, outputs)]
    plugin.enqueue(*described, *addresses, workspace.data_ptr() + start, 0)
    assert bool((workspace[start + bytes_needed :] == 0xFF).all())


def make_plugin(trt: ModuleType, spec: opspec.OpSpec, **changes: float) -> GenericPlugin:
    return plugin_class(trt)(trt, spec, {**attributes_of(spec), **changes}, "layers.3/op")


@pytest.mark.usefixtures("library")
class TestEnqueue:
    def test_rotary(self, trt: ModuleType) -> None:
        x, position_ids = torch.randn(2, 3, 6, 8), torch.tensor([[0, 1, 2], [9, 70, 4]])
        inv_freq, y = torch.tensor([1.0, 0.3, 0.1, 0.01]), torch.empty(2, 3, 6, 8)
        enqueue(trt, make_plugin(trt, opspec.ROTARY, attention_factor=1.25), [x, position_ids, inv_freq], [y])
        torch.testing.assert_close(y, rotary_embedding_reference(x, position_ids, inv_freq, 1.25))

    @pytest.mark.parametrize("spec", [opspec.ATTENTION, opspec.ROTARY_ATTENTION], ids=lambda spec: spec.name)
    def test_attention_updates_the_cache_in_place(self, trt: ModuleType, spec: opspec.OpSpec) -> None:
        query, key, value = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2, 8)
        past_key, past_value = torch.randn(2, 2, 11, 8), torch.randn(2, 2, 11, 8)
        past_lengths, query_lengths = torch.tensor([5, 0]), torch.tensor([3, 2])
        inv_freq, output = torch.tensor([1.0, 0.3, 0.1, 0.01]), torch.empty_like(query)
        turned = (query, key)
        if spec is opspec.ROTARY_ATTENTION:
            position_ids = past_lengths[:, None] + torch.arange(3)
            turned = tuple(rotary_embedding_reference(x, position_ids, inv_freq, 1.0) for x in turned)
        expected = group_query_attention_reference(
            *turned, value, past_key, past_value, past_lengths, query_lengths, 6, 2, 0.25, 4
        )
        inputs = [query, key, value, past_key, past_value, past_lengths, query_lengths]
        inputs += [inv_freq] if spec is opspec.ROTARY_ATTENTION else []
        enqueue(trt, make_plugin(trt, spec, sliding_window=4), inputs, [output, past_key, past_value])
        assert expected[0].shape == output.shape
        for row, length in enumerate(query_lengths.tolist()):
            torch.testing.assert_close(output[row, :length], expected[0][row, :length])
        torch.testing.assert_close(past_key, expected[1])
        torch.testing.assert_close(past_value, expected[2])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_moe_hands_each_expert_its_own_weights(self, trt: ModuleType, dtype: torch.dtype) -> None:
        hidden, logits = torch.randn(4, 12).to(dtype), torch.randn(4, 3).to(dtype)
        weights = [[torch.randn(shape).to(dtype) for shape in ((5, 12), (5, 12), (12, 5))] for _ in range(3)]
        output = torch.empty_like(hidden)
        flat = [tensor for expert in weights for tensor in expert]
        enqueue(trt, make_plugin(trt, opspec.MOE, norm_topk_prob=1), [hidden, logits, *flat], [output])
        by_kind = [[expert[i].float() for expert in weights] for i in range(3)]
        expected = moe_reference(hidden.float(), logits.float(), *by_kind, 3, 2, 1)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
        torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)

    def test_a_plugin_is_called_again_with_other_sizes_and_other_addresses(self, trt: ModuleType) -> None:
        """What it keeps of a call depends on the sizes, and arrays of addresses on those."""
        plugin = make_plugin(trt, opspec.MOE, norm_topk_prob=1)
        weights = [torch.randn(shape) for _ in range(3) for shape in ((5, 12), (5, 12), (12, 5))]
        for tokens in (4, 1, 4, 7, 1):
            if tokens == 7:
                weights = [torch.randn(tensor.shape) for tensor in weights]  # streamed to another place
            hidden, logits = torch.randn(tokens, 12), torch.randn(tokens, 3)
            output = torch.empty_like(hidden)
            enqueue(trt, plugin, [hidden, logits, *weights], [output])
            expected = moe_reference(hidden, logits, *(weights[i::3] for i in range(3)), 3, 2, 1)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(ExportError, match="but 13 in input"):  # checked where a size is new
            enqueue(trt, plugin, [torch.randn(4, 13), torch.randn(4, 3), *weights], [output])

    def test_what_the_kernels_refuse_names_the_node(self, trt: ModuleType) -> None:
        query, key = torch.zeros(1, 1, 6, 512), torch.zeros(1, 1, 2, 512)
        past, length = torch.zeros(1, 2, 1, 512), torch.zeros(1, dtype=torch.int64)
        inputs = [query, key, key, past, past, length, length]
        with pytest.raises(GenerationError, match=r"node 'layers\.3/op' .*refuses the call: .*512.*256"):
            enqueue(trt, make_plugin(trt, opspec.ATTENTION), inputs, [query, past, past])


dimension = st.integers(1, 3000)


@settings(max_examples=200)
@given(st.data())
@pytest.mark.usefixtures("library")
def test_engines_reserve_what_the_kernels_want(data: st.DataObject) -> None:
    """And never less for larger shapes: the reservation is made for the largest of a profile."""
    spec = data.draw(st.sampled_from(opspec.ALL))
    kv_heads, experts = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 130))
    sizes = {symbol: data.draw(dimension) for symbol in ("B", "S", "C", "T", "H", "I")}
    sizes |= {"Hkv": kv_heads, "Hq": kv_heads * data.draw(st.integers(1, 8)), "E": experts}
    sizes["D"] = 2 * data.draw(st.integers(1, 128))
    if spec is opspec.QUANTIZED_MOE:
        sizes |= {name: 32 * sizes[name] for name in "HI"}  # whole blocks
    changes = {"num_heads": sizes["Hq"], "num_kv_heads": kv_heads, "num_experts": experts}
    changes["top_k"] = data.draw(st.integers(1, experts))
    attributes = {name: changes.get(name, value) for name, value in attributes_of(spec).items()}
    call = kernels.Call(spec, sizes, attributes, data.draw(st.sampled_from(FLOAT_NAMES)), "n")
    reserved = reserved_bytes(spec, sizes, attributes)
    assert kernels.workspace_bytes(call) <= reserved
    larger = {**sizes, data.draw(st.sampled_from(["B", "S", "C", "T"])): 4000}
    assert reserved <= reserved_bytes(spec, larger, attributes)


def test_kernels_that_want_more_are_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "reserved_bytes", lambda *arguments: 1)
    sizes = {"T": 2, "H": 4, "I": 4, "E": 3}
    call = kernels.Call(opspec.MOE, sizes, attributes_of(opspec.MOE), "float16", "layers.3/op")
    with pytest.raises(
        GenerationError, match=r"layers\.3/op.* want \d+ bytes of workspace, engines reserve 1;"
    ):
        kernels.launch(call, [0] * 11, [0], 0, 0)


def test_a_library_of_another_version_or_kind_is_refused(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ABI_VERSION", 99)
    kernels.load.cache_clear()
    with pytest.raises(MissingDependencyError, match="has version 2 of the kernel interface, expected 99"):
        kernels.load(library)
    text = tmp_path / "libq2export_kernels.so"
    text.write_text("not a library")
    with pytest.raises(MissingDependencyError, match=r"cannot be loaded: .*; in the source tree: python -m "):
        kernels.load(text)
