"""The torch operators against float64 references, and every form of an op against its specification."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from q2export.contracts import opspec
from q2export.exporter.graph.ops.attention import group_query_attention
from q2export.exporter.graph.ops.functions import ONNX_OPSET, function_for
from q2export.exporter.graph.ops.library import torch_schema
from q2export.exporter.graph.ops.linear import linear
from q2export.exporter.graph.ops.moe import moe
from q2export.exporter.graph.ops.rotary import rotary_embedding

Float64Array = npt.NDArray[np.float64]

OPERATORS = {
    opspec.ROTARY.name: rotary_embedding,
    opspec.ATTENTION.name: group_query_attention,
    opspec.MOE.name: moe,
}


# References, in float64 and one element at a time.


def rotate(
    x: Float64Array, position_ids: npt.NDArray[np.int64], inv_freq: npt.NDArray[np.float32], factor: float
) -> Float64Array:
    """Each pair (x[i], x[i + D/2]) as a complex number, turned by position * inv_freq[i] (in float32)."""
    half = x.shape[-1] // 2
    angle = position_ids[:, :, None, None].astype(np.float32) * inv_freq
    turned = (x[..., :half] + 1j * x[..., half:]) * factor * np.exp(1j * angle.astype(np.float64))
    return np.concatenate((turned.real, turned.imag), axis=-1)


def attend(
    query: Float64Array,
    keys: Sequence[Float64Array],
    values: Sequence[Float64Array],
    past_lengths: Sequence[int],
    scale: float,
    window: int,
) -> Float64Array:
    """``keys[b]``, ``values[b]``: all ``[tokens, kv_heads, D]`` of row ``b``, cached ones and new ones."""
    output = np.zeros_like(query)
    batch, sequence, heads, _ = query.shape
    for b, s, h in np.ndindex(batch, sequence, heads):
        position = past_lengths[b] + s
        if position >= len(keys[b]):
            continue  # padding
        first = max(0, position - window + 1) if window else 0
        kv_head = h // (heads // keys[b].shape[1])
        scores = keys[b][first : position + 1, kv_head] @ query[b, s, h] * scale
        weight = np.exp(scores - scores.max())
        output[b, s, h] = weight / weight.sum() @ values[b][first : position + 1, kv_head]
    return output


def mix(
    hidden: Float64Array,
    probability: Float64Array,
    experts: Sequence[tuple[Float64Array, Float64Array, Float64Array]],
    chosen: Sequence[Sequence[int]],
    norm: bool,
) -> Float64Array:
    """The SwiGLU experts in ``chosen[token]``, weighted."""
    output = np.zeros_like(hidden)
    for token, row in enumerate(hidden):
        total = sum(probability[token, e] for e in chosen[token]) if norm else 1.0
        for e in chosen[token]:
            gate, up, down = experts[e]
            g = gate @ row
            output[token] += probability[token, e] / total * (down @ (g / (1 + np.exp(-g)) * (up @ row)))
    return output


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def double(tensor: torch.Tensor) -> Float64Array:
    return tensor.to(torch.float64).numpy()


# Rotary embedding


@pytest.mark.parametrize("head_dim", [2, 6, 64, 128])
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_rotary_embedding(head_dim: int, factor: float) -> None:
    rng = np.random.default_rng(head_dim)
    x = normal(rng, 2, 3, 5, head_dim)
    position_ids = torch.tensor([[0, 1, 131_071], [7, 8, 9]])
    inv_freq = torch.from_numpy(rng.uniform(1e-6, 1, head_dim // 2).astype(np.float32))
    actual = rotary_embedding(x, position_ids, inv_freq, factor)
    expected = rotate(double(x), position_ids.numpy(), inv_freq.numpy(), factor)
    assert np.abs(actual.numpy() - expected).max() < 1e-6 * np.abs(expected).max()
    if factor == 1.0:
        assert torch.equal(actual[0, 0], x[0, 0])  # position 0 turns nothing


def test_rotary_embedding_depends_on_distance_only() -> None:
    rng = np.random.default_rng(0)
    x, y = normal(rng, 1, 1, 1, 16), normal(rng, 1, 1, 1, 16)
    inv_freq = 10000 ** -(torch.arange(8) / 8)

    def product(p: int, q: int) -> float:
        turned = [rotary_embedding(v, torch.tensor([[at]]), inv_freq, 1.0) for v, at in ((x, p), (y, q))]
        return float((turned[0] * turned[1]).sum())

    assert product(5, 2) == pytest.approx(product(103, 100), abs=1e-5)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_embedding_computes_angles_in_float32(dtype: torch.dtype) -> None:
    x = normal(np.random.default_rng(0), 1, 1, 2, 64).to(dtype)
    position_ids, inv_freq = torch.tensor([[32_767]]), 1e6 ** -(torch.arange(32) / 32)
    actual = rotary_embedding(x, position_ids, inv_freq, 1.0)
    assert actual.dtype == dtype
    expected = torch.from_numpy(rotate(double(x), position_ids.numpy(), inv_freq.numpy(), 1.0))
    assert (actual.to(torch.float64) - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


# Attention


def attention_case(
    heads: int, kv_heads: int, window: int, seed: int = 0
) -> tuple[tuple[object, ...], Float64Array, list[Float64Array], list[Float64Array]]:
    """Arguments of a ragged step (a long past, none, a short past), the output expected, and the caches."""
    rng = np.random.default_rng(seed)
    batch, sequence, capacity, head_dim = 3, 4, 11, 6
    past, new = [6, 0, 2], [4, 3, 1]
    query = normal(rng, batch, sequence, heads, head_dim)
    key, value = (normal(rng, batch, sequence, kv_heads, head_dim) for _ in "kv")
    past_key, past_value = (torch.full((batch, kv_heads, capacity, head_dim), torch.nan) for _ in "kv")
    keys, values = [], []
    for row in range(batch):
        for cache, fresh, whole in ((past_key, key, keys), (past_value, value, values)):
            cache[row, :, : past[row]] = normal(rng, kv_heads, past[row], head_dim)
            old = cache[row, :, : past[row]].transpose(0, 1)
            whole.append(double(torch.cat((old, fresh[row, : new[row]]))))
    scale = 0.37
    expected = attend(double(query), keys, values, past, scale, window)
    lengths = torch.tensor(past), torch.tensor(new)
    return (
        (query, key, value, past_key, past_value, *lengths, heads, kv_heads, scale, window),
        expected,
        keys,
        values,
    )


@pytest.mark.parametrize("window", [0, 1, 3, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (6, 1), (7, 1), (3, 3), (16, 2)])
def test_group_query_attention(heads: int, kv_heads: int, window: int) -> None:
    arguments, expected, keys, values = attention_case(heads, kv_heads, window)
    past_key, past_value = arguments[3], arguments[4]
    output, present_key, present_value = group_query_attention(*arguments)
    assert torch.isfinite(output).all()  # padding included, although the rest of the cache is NaN
    for row, length in enumerate((4, 3, 1)):
        assert np.abs(output[row, :length].numpy() - expected[row, :length]).max() < 1e-6
    for present, past, whole in ((present_key, past_key, keys), (present_value, past_value, values)):
        for row, tokens in enumerate(whole):
            assert np.array_equal(present[row, :, : len(tokens)].transpose(0, 1).numpy(), tokens)
            assert present[row, :, len(tokens) :].isnan().all()  # padding writes nothing
            assert past[row, :, 10:].isnan().all()  # a functional op: the past is as it was


def test_group_query_attention_of_one_key_returns_its_value() -> None:
    rng = np.random.default_rng(0)
    query, key, value = (normal(rng, 1, 1, 2, 4) for _ in "qkv")
    cache = torch.zeros(1, 2, 3, 4)
    lengths = torch.tensor([0]), torch.tensor([1])
    output, *_ = group_query_attention(query, key, value, cache, cache, *lengths, 2, 2, 0.5, 0)
    assert torch.allclose(output, value, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_query_attention_accumulates_in_float32(dtype: torch.dtype) -> None:
    arguments, *_ = attention_case(6, 2, 0)
    low = tuple(
        a.to(dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    )
    wide = tuple(a.to(torch.float32) if isinstance(a, torch.Tensor) and a.dtype == dtype else a for a in low)
    actual, expected = group_query_attention(*low)[0], group_query_attention(*wide)[0]
    assert actual.dtype == dtype
    assert torch.equal(actual, expected.to(dtype))


# Mixture of experts


def experts(
    rng: np.random.Generator, count: int, hidden: int = 5, width: int = 3
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    gate, up = ([normal(rng, width, hidden) for _ in range(count)] for _ in range(2))
    return gate, up, [normal(rng, hidden, width) for _ in range(count)]


def softmax(logits: Float64Array) -> Float64Array:
    exponential = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponential / exponential.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize(
    ("tokens", "count", "top_k"), [(9, 6, 2), (1, 4, 3), (7, 3, 3), (5, 1, 1), (2, 40, 4)]
)
def test_moe(tokens: int, count: int, top_k: int, norm: int) -> None:
    """One token; as many experts as are chosen; one expert; most experts idle."""
    rng = np.random.default_rng(tokens)
    hidden, logits = normal(rng, tokens, 5), normal(rng, tokens, count)
    weights = experts(rng, count)
    actual = moe(hidden, logits, *weights, count, top_k, norm)
    probability = softmax(double(logits))
    chosen = np.argsort(-probability, axis=-1)[:, :top_k].tolist()
    table = [tuple(double(w) for w in expert) for expert in zip(*weights, strict=True)]
    expected = mix(double(hidden), probability, table, chosen, bool(norm))
    assert np.abs(actual.numpy() - expected).max() < 1e-6 * np.abs(expected).max()


def test_moe_ties() -> None:
    """Of equal router logits the lowest index is chosen, also where softmax makes unequal ones equal."""
    rng = np.random.default_rng(0)
    hidden, weights = normal(rng, 3, 5), experts(rng, 4)
    barely = np.nextafter(np.float32(0.5), np.float32(1))
    logits = torch.tensor([[0.5, 2.0, 0.5, 0.5], [0, 0, 0, 0], [0.5, 0.5, barely, 0.5]])
    actual = moe(hidden, logits, *weights, 4, 2, 1).numpy()
    table = [tuple(double(w) for w in expert) for expert in zip(*weights, strict=True)]
    expected = mix(double(hidden), softmax(double(logits)), table, [[1, 0], [0, 1], [2, 0]], True)
    assert np.abs(actual - expected).max() < 1e-6


def test_moe_never_reads_an_idle_expert() -> None:
    rng = np.random.default_rng(0)
    gate, up, down = experts(rng, 3)
    logits = torch.tensor([[1.0, 0.0, 9.0], [2.0, 0.0, 1.0]])
    expected = moe(normal(rng, 2, 5), logits, gate, up, down, 3, 2, 0)
    rng = np.random.default_rng(0)
    gate, up, down = experts(rng, 3)
    gate[1][:] = torch.nan
    assert torch.equal(moe(normal(rng, 2, 5), logits, gate, up, down, 3, 2, 0), expected)


# Linear


def test_linear_rounds_its_input_over_bfloat16_alone() -> None:
    """1 + 2**-8 lies between two numbers of bfloat16, and goes to the even one."""
    x, weight = torch.tensor([[1 + 2**-8]]), torch.ones(1, 1)
    assert linear(x, weight.to(torch.bfloat16), None, 1).item() == 1
    assert linear(x, weight.to(torch.bfloat16), None, 0).item() == 1 + 2**-8
    with pytest.raises(ValueError, match=r"bfloat16_activations is 1, but the weight is torch\.float16"):
        linear(x, weight.to(torch.float16), None, 1)


# Specification


@pytest.mark.parametrize("spec", [opspec.ROTARY, opspec.ATTENTION, opspec.MOE], ids=lambda spec: spec.name)
def test_torch_schema_is_that_of_the_specification(spec: opspec.OpSpec) -> None:
    schema = OPERATORS[spec.name]._schema
    assert str(schema) == f"q2export::{torch_schema(spec)}"
    names = [argument.name for argument in schema.arguments]
    repeated = [tensor.name for tensor in spec.repeated]
    optional = [attribute.name for attribute in spec.cpu_attributes]
    attributes = [*spec.attribute_names(), *optional]
    assert names == [tensor.name for tensor in spec.inputs] + repeated + attributes
    types = {a.name: str(a.type) for a in schema.arguments}
    assert {a.name: types[a.name] for a in spec.attributes} == {a.name: a.type for a in spec.attributes}
    assert all(types[name] == "List[Tensor]" for name in repeated)
    assert len(schema.returns) == len(spec.outputs)


def sample_arguments(name: str, dtype: torch.dtype) -> tuple[object, ...]:
    rng = np.random.default_rng(0)
    if name == opspec.ROTARY.name:
        return (normal(rng, 2, 3, 4, 6).to(dtype), torch.zeros(2, 3, dtype=torch.int64), torch.ones(3), 1.5)
    if name == opspec.ATTENTION.name:
        query, key, value, past_key, past_value, *rest = attention_case(4, 2, 3)[0]
        tensors = (query, key, value, past_key.nan_to_num(), past_value.nan_to_num())
        return (*(tensor.to(dtype) for tensor in tensors), *rest)
    weights = ([w.to(dtype) for w in group] for group in experts(rng, 3))
    return (normal(rng, 4, 5).to(dtype), normal(rng, 4, 3).to(dtype), *weights, 3, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    """``opcheck`` compares shapes, types and strides, and that no input is changed or returned."""
    arguments = sample_arguments(name, dtype)
    torch.library.opcheck(OPERATORS[name], arguments, test_utils=("test_schema", "test_faketensor"))
    outputs = OPERATORS[name](*arguments)
    for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
        assert tensor.dtype == dtype


# Bodies over packed weights have a scheme: test_quantized_ops.py.
UNPACKED = [spec for spec in opspec.ALL if spec is not opspec.QUANTIZED_MOE]


@pytest.mark.parametrize("spec", UNPACKED, ids=lambda spec: spec.name)
def test_function_signature_is_that_of_the_specification(spec: opspec.OpSpec) -> None:
    function = function_for(spec, num_experts=3)
    repeats = 3 if spec.repeated else 0
    assert (function.domain, function.name) == (opspec.DOMAIN, spec.name)
    assert tuple(function.input) == spec.input_names(repeats)
    assert tuple(function.output) == spec.output_names()
    assert list(function.attribute) == [*spec.attribute_names(), "plugin_version", "plugin_namespace"]
    imports = {entry.domain: entry.version for entry in function.opset_import}
    assert imports == {"": ONNX_OPSET, opspec.DOMAIN: opspec.DOMAIN_VERSION}


@pytest.mark.parametrize("spec", UNPACKED, ids=lambda spec: spec.name)
def test_function_reads_every_input_and_attribute(spec: opspec.OpSpec) -> None:
    function = function_for(spec, num_experts=3)
    read = {name for node in function.node for name in node.input}
    assert set(function.input) <= read
    assert set(function.output) <= {name for node in function.node for name in node.output}
    attributes = {a.ref_attr_name for node in function.node for a in node.attribute if a.ref_attr_name}
    assert set(spec.attribute_names()) <= attributes
    assert attributes <= set(function.attribute)


def test_names_of_repeated_inputs() -> None:
    assert opspec.MOE.input_names(2)[2:] == ("gate_0", "up_0", "down_0", "gate_1", "up_1", "down_1")
    assert opspec.ROTARY.input_names() == ("x", "position_ids", "inv_freq")


@pytest.mark.parametrize("spec", opspec.ALL, ids=lambda spec: spec.name)
def test_specification_is_coherent(spec: opspec.OpSpec) -> None:
    """Aliases join an output to an input of the same shape; TensorRT's built-in names are avoided."""
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    for output, source in spec.aliases:
        assert outputs[output].shape == inputs[source].shape
        assert outputs[output].element_type == inputs[source].element_type
    assert re.fullmatch(r"Q2[A-Z]\w+", spec.name)
    assert opspec.BY_NAME[spec.name] is spec
    names = [*inputs, *outputs, *spec.attribute_names(), *(tensor.name for tensor in spec.repeated)]
    assert len(names) == len(set(names))
