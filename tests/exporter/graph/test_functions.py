"""Function bodies in ONNX Runtime and in onnx.reference.

Each op against its torch operator, and whole files against transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import PreTrainedModel

import q2export
from q2export.contracts import opspec
from q2export.exporter.graph.ops.attention import group_query_attention
from q2export.exporter.graph.ops.functions import IR_VERSION, ONNX_OPSET, function_for
from q2export.exporter.graph.ops.linear import linear
from q2export.exporter.graph.ops.moe import moe
from q2export.exporter.graph.ops.rotary import rotary_embedding
from tests.helpers.checkpoints import tiny_config, write_checkpoint
from tests.helpers.transformers_models import load_model, reference_logits

Array = npt.NDArray[np.generic]
Run = Callable[[Mapping[str, Array]], dict[str, Array]]

MAX_ABS_ERROR = 1e-4


def onnxruntime_runner(model: onnx.ModelProto | Path) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def reference_runner(model: onnx.ModelProto | Path) -> Run:
    evaluator = ReferenceEvaluator(onnx.load(model) if isinstance(model, Path) else model)
    names = list(evaluator.output_names)
    return lambda feed: dict(zip(names, evaluator.run(names, dict(feed)), strict=True))


RUNNERS = {"onnxruntime": onnxruntime_runner, "onnx.reference": reference_runner}


@pytest.fixture(params=RUNNERS)
def runner(request: pytest.FixtureRequest) -> Callable[[onnx.ModelProto | Path], Run]:
    return RUNNERS[request.param]


def single_op(
    spec: opspec.OpSpec,
    feed: Mapping[str, Array],
    attributes: Mapping[str, int | float],
    count: int = 0,
    widen: bool = False,
) -> onnx.ModelProto:
    """A graph of one node of ``spec``, all shapes dynamic, with the functions it needs."""
    helper = onnx.helper
    node = helper.make_node(
        spec.name, list(feed), list(spec.output_names()), domain=opspec.DOMAIN, **attributes,
        plugin_version=opspec.PLUGIN_VERSION, plugin_namespace=opspec.PLUGIN_NAMESPACE,
    )  # fmt: skip
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    graph = helper.make_graph(
        [node],
        spec.name,
        [helper.make_tensor_value_info(name, types[name], [None] * feed[name].ndim) for name in feed],
        [
            helper.make_tensor_value_info(output.name, types[next(iter(feed))], [None] * len(output.shape))
            for output in spec.outputs
        ],
    )
    specs = [opspec.ROTARY, opspec.ATTENTION, spec] if spec == opspec.ROTARY_ATTENTION else [spec]
    model = helper.make_model(
        graph,
        functions=[function_for(one, num_experts=count, widen=widen) for one in specs],
        opset_imports=[
            helper.make_opsetid("", ONNX_OPSET),
            helper.make_opsetid(opspec.DOMAIN, opspec.DOMAIN_VERSION),
        ],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def normal(rng: np.random.Generator, *shape: int, dtype: str = "float32") -> Array:
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def tolerance(dtype: str) -> float:
    return 2e-6 if dtype == "float32" else 2e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rotary_body(runner: Callable[[onnx.ModelProto], Run], dtype: str) -> None:
    rng = np.random.default_rng(0)
    feed = {
        "x": normal(rng, 2, 3, 5, 8, dtype=dtype),
        "position_ids": np.array([[0, 1, 131_071], [40, 41, 42]]),
        "inv_freq": np.float32(1e4) ** -(np.arange(4, dtype=np.float32) / 4),
    }
    actual = runner(single_op(opspec.ROTARY, feed, {"attention_factor": 1.2}))(feed)["y"]
    expected = rotary_embedding(*(torch.from_numpy(a) for a in feed.values()), 1.2)
    assert actual.dtype == np.dtype(dtype)
    assert np.abs(actual - expected.numpy()).max() <= tolerance(dtype)


PAST, NEW = [6, 0, 2], [4, 3, 1]


def attention_feed(heads: int, kv_heads: int, dtype: str) -> dict[str, Array]:
    """A ragged step on caches that hold NaN beyond what is valid, and NaN where padding must not be read."""
    rng = np.random.default_rng(heads)
    cache = np.full((3, kv_heads, 11, 8), np.nan, dtype)
    feed = {
        "query": normal(rng, 3, 4, heads, 8, dtype=dtype),
        "key": normal(rng, 3, 4, kv_heads, 8, dtype=dtype),
        "value": normal(rng, 3, 4, kv_heads, 8, dtype=dtype),
        "past_key": cache.copy(),
        "past_value": cache.copy(),
        "past_lengths": np.array(PAST),
        "query_lengths": np.array(NEW),
    }
    for row, (past, new) in enumerate(zip(PAST, NEW, strict=True)):
        for name in ("past_key", "past_value"):
            feed[name][row, :, :past] = normal(rng, kv_heads, past, 8, dtype=dtype)
        for name in ("key", "value"):
            feed[name][row, new:] = np.nan
    return feed


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("rotated", [False, True], ids=["attention", "rotary_attention"])
def test_attention_bodies(
    runner: Callable[[onnx.ModelProto], Run],
    heads: int,
    kv_heads: int,
    dtype: str,
    window: int,
    rotated: bool,
) -> None:
    feed = attention_feed(heads, kv_heads, dtype)
    attributes: dict[str, int | float] = {
        "num_heads": heads, "num_kv_heads": kv_heads, "scale": 0.3, "sliding_window": window
    }  # fmt: skip
    arguments = [torch.from_numpy(array) for array in feed.values()]
    spec = opspec.ATTENTION
    if rotated:
        spec = opspec.ROTARY_ATTENTION
        attributes["attention_factor"] = 1.2
        feed["inv_freq"] = np.float32(1e4) ** -(np.arange(4, dtype=np.float32) / 4)
        positions = torch.tensor(PAST)[:, None] + torch.arange(4)
        inv_freq = torch.from_numpy(feed["inv_freq"])
        arguments[:2] = [rotary_embedding(x, positions, inv_freq, 1.2) for x in arguments[:2]]
    expected = group_query_attention(*arguments, heads, kv_heads, 0.3, window)
    actual = runner(single_op(spec, feed, attributes))(feed)
    assert np.isfinite(actual["output"]).all()
    for name, reference in zip(spec.output_names(), expected, strict=True):
        assert actual[name].dtype == np.dtype(dtype)
        for row, (past, new) in enumerate(zip(PAST, NEW, strict=True)):
            valid = (row, slice(new)) if name == "output" else (row, slice(None), slice(past + new))
            assert np.abs(actual[name][valid] - reference.numpy()[valid]).max() <= tolerance(dtype)
            if name != "output":
                assert np.isnan(actual[name][row, :, past + new :]).all()  # padding writes nothing


@pytest.mark.parametrize("rounded", [0, 1])
def test_linear_body(runner: Callable[[onnx.ModelProto], Run], rounded: int) -> None:
    """With the input rounded and as it is: what PyTorch makes of the same weight of bfloat16."""
    rng = np.random.default_rng(rounded)
    tensors = {name: torch.from_numpy(normal(rng, *shape)) for name, shape in LINEAR_SHAPES.items()}
    narrow = tensors["weight"].to(torch.bfloat16)
    feed = {name: tensor.numpy() for name, tensor in tensors.items()} | {"weight": narrow.float().numpy()}
    actual = runner(single_op(opspec.LINEAR, feed, {"bfloat16_activations": rounded}))(feed)["output"]
    expected = linear(tensors["input"], narrow, tensors["bias"], rounded)
    assert np.abs(actual - expected.numpy()).max() <= 2e-6
    as_it_is = linear(tensors["input"], narrow, tensors["bias"], 0)
    assert torch.equal(expected, as_it_is) == (not rounded)


LINEAR_SHAPES = {"input": (5, 24), "weight": (7, 24), "bias": (7,)}


def moe_feed(tokens: int, count: int, dtype: str) -> dict[str, Array]:
    rng = np.random.default_rng(tokens + count)
    feed = {
        "hidden": normal(rng, tokens, 8, dtype=dtype),
        "router_logits": normal(rng, tokens, count, dtype=dtype),
    }
    shapes = {"gate": (3, 8), "up": (3, 8), "down": (8, 3)}
    feed |= {
        f"{name}_{expert}": normal(rng, *shapes[name], dtype=dtype) / 2
        for expert in range(count)
        for name in shapes
    }
    assert tuple(feed) == opspec.MOE.input_names(count)
    return feed


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize(
    ("tokens", "count", "top_k"), [(9, 5, 2), (1, 4, 3), (6, 3, 3), (4, 1, 1), (2, 20, 4)]
)
def test_moe_body(
    runner: Callable[[onnx.ModelProto], Run], tokens: int, count: int, top_k: int, norm: int, dtype: str
) -> None:
    """One token; as many experts as are chosen; one expert; most experts idle."""
    feed = moe_feed(tokens, count, dtype)
    attributes = {"num_experts": count, "top_k": top_k, "norm_topk_prob": norm}
    actual = runner(single_op(opspec.MOE, feed, attributes, count))(feed)["output"]
    hidden, logits, *weights = (torch.from_numpy(array) for array in feed.values())
    expected = moe(hidden, logits, weights[::3], weights[1::3], weights[2::3], count, top_k, norm)
    assert actual.dtype == np.dtype(dtype)
    assert np.abs(actual - expected.numpy()).max() <= 4 * tolerance(dtype)


@pytest.mark.parametrize("rounded", [0, 1])
def test_moe_body_over_narrow_weights(runner: Callable[[onnx.ModelProto], Run], rounded: int) -> None:
    """With activations rounded and as they are: what PyTorch makes of the same weights of bfloat16."""
    feed = moe_feed(9, 5, "float32")
    hidden, logits, *weights = (torch.from_numpy(array) for array in feed.values())
    narrow = [weight.to(torch.bfloat16) for weight in weights]
    feed |= {
        name: each.float().numpy() for name, each in zip(opspec.MOE.input_names(5)[2:], narrow, strict=True)
    }
    attributes = {"num_experts": 5, "top_k": 2, "norm_topk_prob": 1, "bfloat16_activations": rounded}
    actual = runner(single_op(opspec.MOE, feed, attributes, 5, widen=True))(feed)["output"]
    matrices = (narrow[::3], narrow[1::3], narrow[2::3])
    expected = moe(hidden, logits, *matrices, *attributes.values())
    assert np.abs(actual - expected.numpy()).max() <= 1e-5
    assert torch.equal(expected, moe(hidden, logits, *matrices, 5, 2, 1)) == (not rounded)


def test_moe_body_with_ties_and_idle_experts(runner: Callable[[onnx.ModelProto], Run]) -> None:
    """Every token sends itself to experts 1 and 3, with equal weight; an idle expert is never read."""
    feed = moe_feed(5, 4, "float32")
    feed["router_logits"] = np.tile(np.float32([0, 2, -1, 2]), (5, 1))
    for name in ("gate_0", "down_2"):
        feed[name][:] = np.nan
    model = single_op(opspec.MOE, feed, {"num_experts": 4, "top_k": 2, "norm_topk_prob": 1}, 4)
    actual = runner(model)(feed)["output"]

    def expert(index: int) -> Array:
        gate = feed["hidden"] @ feed[f"gate_{index}"].T
        return (gate / (1 + np.exp(-gate)) * (feed["hidden"] @ feed[f"up_{index}"].T)) @ feed[
            f"down_{index}"
        ].T

    assert np.abs(actual - (expert(1) + expert(3)) / 2).max() < 1e-5


def test_moe_body_breaks_ties_as_pytorch_does(runner: Callable[[onnx.ModelProto], Run]) -> None:
    """Three distinct logits for eight experts: which of equal ones are chosen shows in the output."""
    feed = moe_feed(9, 8, "float32")
    feed["router_logits"] = np.random.default_rng(1).integers(0, 3, (9, 8)).astype(np.float32)
    model = single_op(opspec.MOE, feed, {"num_experts": 8, "top_k": 3, "norm_topk_prob": 0}, 8)
    hidden, logits, *weights = (torch.from_numpy(array) for array in feed.values())
    expected = moe(hidden, logits, weights[::3], weights[1::3], weights[2::3], 8, 3, 0)
    assert np.abs(runner(model)(feed)["output"] - expected.numpy()).max() < 1e-5


CONFIGS: dict[str, dict[str, object]] = {
    "dense-yarn": {
        "head_dim": 16,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
    "moe": {"model_type": "qwen2_moe", "head_dim": 8, "tie_word_embeddings": True, "mlp_only_layers": [0]},
    "sliding-window": {
        "head_dim": 8, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1
    },
}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """One checkpoint as a file with function bodies, and as the oracle."""

    onnx: Path
    layers: int
    cache_shape: tuple[int, ...]
    model: PreTrainedModel


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    return write_checkpoint(folder / "checkpoint", tiny_config(**CONFIGS[request.param]))


@pytest.fixture(scope="module", params=["portable", "tensorrt"])
def exported(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[Exported]:
    # Copied, because onnx itself refuses weights that are hard links.
    result = q2export.export(
        checkpoint, checkpoint.with_name(request.param), target=request.param, dtype="float32", weights="copy"
    )
    assert result.manifest.weights.converted_bytes == 0
    engine = result.manifest.engine
    yield Exported(
        result.onnx,
        engine.num_hidden_layers,
        (2, engine.num_key_value_heads, 24, engine.head_dim),
        load_model(checkpoint),
    )


def test_whole_file(runner: Callable[[Path], Run], exported: Exported) -> None:
    """Ragged prefill, a ragged chunk on top of it, ragged decode; the caches start as NaN."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 131, length).tolist() for length in (16, 10)]
    expected = [reference_logits(exported.model, sequence) for sequence in sequences]
    assert max(np.abs(logits).max() for logits in expected) > 3
    run = runner(exported.onnx)
    cache: dict[str, Array] = {
        f"past_{kind}.{layer}": np.full(exported.cache_shape, np.nan, np.float32)
        for layer in range(exported.layers)
        for kind in ("key", "value")
    }
    past = [0, 0]
    for step in ((9, 6), (4, 1), (1, 1), (2, 2)):
        outputs = run({**step_feed(sequences, past, step), **cache})
        for row, length in enumerate(step):
            part = expected[row][past[row] : past[row] + length]
            assert np.abs(outputs["logits"][row, :length] - part).max() <= MAX_ABS_ERROR
        past = [before + length for before, length in zip(past, step, strict=True)]
        cache = {name.replace("past", "present"): outputs[name.replace("past", "present")] for name in cache}
        cache = {name.replace("present", "past"): array for name, array in cache.items()}
        for array in cache.values():
            for row, length in enumerate(past):
                assert np.isfinite(array[row, :, :length]).all()
                assert np.isnan(array[row, :, length:]).all()


def step_feed(
    sequences: Sequence[Sequence[int]], past: Sequence[int], step: Sequence[int]
) -> dict[str, Array]:
    """Inputs of a step that appends ``step[b]`` tokens to row ``b`` and asks for all logits."""
    ids = np.zeros((len(step), max(step)), np.int64)
    for row, length in enumerate(step):
        ids[row, :length] = sequences[row][past[row] : past[row] + length]
    return {
        "input_ids": ids,
        "past_lengths": np.array(past),
        "query_lengths": np.array(step),
        "logits_indices": np.tile(np.arange(max(step)), (len(step), 1)),
    }


def test_whole_file_asked_for_no_logits(runner: Callable[[Path], Run], exported: Exported) -> None:
    feed = step_feed([[5, 6], [7, 8]], [0, 0], (2, 2)) | {"logits_indices": np.zeros((2, 0), np.int64)}
    cache = {
        f"past_{kind}.{layer}": np.zeros(exported.cache_shape, np.float32)
        for layer in range(exported.layers)
        for kind in ("key", "value")
    }
    outputs = runner(exported.onnx)({**feed, **cache})
    assert outputs["logits"].shape == (2, 0, 131)
    assert np.abs(outputs["present_key.1"][:, :, :2]).max() > 0
