"""The builder over TensorRT-RTX: what it parses, builds and refuses, and how it stops. Needs no GPU."""

from __future__ import annotations

import gc
import io
import math
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import onnx
import pytest
from onnx import TensorProto, helper

from q2export import api
from q2export.contracts.ranges import Range, StepRanges
from q2export.errors import ExportError
from q2export.plugins.tensorrt.builder import BuildOptions, Network
from q2export.plugins.tensorrt.callbacks import PROGRESS_STEPS, BuildProgress
from q2export.plugins.tensorrt.targets import check_target, rtx_targets, unlisted
from tests.helpers.checkpoints import CHECKPOINTS
from tests.helpers.tensorrt_layers import Layer, list_layers
from tests.plugins.networks import load_rtx

ONE = Range(1, 1, 1)
CAPACITY = Range(1, 64, 256)
PREFILL = StepRanges(Range(1, 1, 4), Range(1, 16, 32), Range(1, 1, 8), CAPACITY)
DECODE = StepRanges(Range(1, 1, 4), ONE, ONE, CAPACITY)
OPTIONS = BuildOptions("8.0", (PREFILL, DECODE))


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return load_rtx()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.export(
        CHECKPOINTS / "qwen2-tiny", tmp_path_factory.mktemp("out") / "dense", target="tensorrt"
    ).onnx


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "moe"
    return api.export(CHECKPOINTS / "qwen2-moe-tiny", folder, target="tensorrt", dtype="float16").onnx


def weight_bytes(path: Path) -> int:
    """Of all initializers, each once."""
    model = onnx.load(path, load_external_data=False)
    size = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
    return sum(
        math.prod(one.dims) * size[one.data_type] for one in model.graph.initializer if one.data_type in size
    )


def plugins_of(layers: tuple[Layer, ...], name: str) -> list[Layer]:
    return [layer for layer in layers if layer.plugin == name]


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_layers_before_the_build(trt: ModuleType, kind: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(kind)
    layers = list_layers(Network(trt, path))
    attention = plugins_of(layers, "Q2RotaryAttention")
    number = {"dense": 5, "moe": 4}[kind]
    assert [layer.aliases for layer in attention] == [
        ((f"present_key.{i}", f"past_key.{i}"), (f"present_value.{i}", f"past_value.{i}"))
        for i in range(number)
    ]
    experts = plugins_of(layers, "Q2MoE")
    assert len(experts) == (number if kind == "moe" else 0)
    assert all(len(layer.inputs) == 2 + 3 * 14 for layer in experts)
    constants = [layer for layer in layers if layer.weight_bytes > 1024]
    assert len({layer.name for layer in constants}) == len(constants), "a weight stands in the network twice"
    assert sum(layer.weight_bytes for layer in constants) <= weight_bytes(path)
    names = {tensor for layer in layers if layer.kind == "MATRIX_MULTIPLY" for tensor in layer.inputs}
    if kind == "dense":  # bfloat16: products read the stored [out, in] weights themselves, the tied head too
        assert {"model.embed_tokens.weight_output", "model.layers.0.mlp.up_proj.weight_output"} <= names


def test_norms_are_float32_inside(trt: ModuleType, dense: Path) -> None:
    network = Network(trt, dense)
    found = {}
    for index in range(network.definition.num_layers):
        layer = network.definition.get_layer(index)
        if layer.type == trt.LayerType.REDUCE:
            found[layer.name] = layer.get_input(0).dtype
    assert len(found) == 11 and set(found.values()) == {trt.float32}


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_engine_holds_the_weights_once_for_both_profiles(
    trt: ModuleType, kind: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(kind)
    sink, seen = io.BytesIO(), []
    Network(trt, path).build(OPTIONS, sink, seen.append)
    kernels = 2.5e6 * 5  # code, about 2 MB per layer
    assert weight_bytes(path) < len(sink.getvalue()) < weight_bytes(path) + kernels
    assert sum(seen) == PROGRESS_STEPS and min(seen) >= 0


def test_engines_of_rtx_allocate_nothing_while_they_run(trt: ModuleType, dense: Path) -> None:
    """Which would keep their steps out of CUDA graphs; those that stream weights have to."""
    network, flag = Network(trt, dense), trt.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert network._config(OPTIONS).get_flag(flag)
    assert not network._config(replace(OPTIONS, weight_streaming=True)).get_flag(flag)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions("12.0", (PREFILL, DECODE), workspace_mib=64, version_compatible=True),
        BuildOptions("8.9", (DECODE,), weight_streaming=True, timing_cache=Path("absent", "ignored-by-rtx")),
    ],
    ids=["blackwell-version-compatible", "ada-weight-streaming"],
)
def test_options_build(trt: ModuleType, dense: Path, options: BuildOptions) -> None:
    sink = io.BytesIO()
    Network(trt, dense).build(options, sink)
    assert len(sink.getvalue()) > weight_bytes(dense)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_build_and_arrives_where_it_would_have(
    trt: ModuleType, dense: Path, number: signal.Signals
) -> None:
    class Arrived(Exception):
        pass

    def handler(found: int, frame: object) -> None:
        raise Arrived(found)

    steps = []

    def advance(amount: int) -> None:
        steps.append(amount)
        if len(steps) == 3:
            os.kill(os.getpid(), number)

    sink, before = io.BytesIO(), signal.signal(number, handler)
    try:
        with pytest.raises(Arrived):
            Network(trt, dense).build(OPTIONS, sink, advance)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert sink.getvalue() == b"" and len(steps) < 10


def test_ctrl_c_is_a_keyboard_interrupt(trt: ModuleType, dense: Path) -> None:
    once = iter([signal.SIGINT])

    def advance(amount: int) -> None:
        for number in once:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        Network(trt, dense).build(OPTIONS, io.BytesIO(), advance)


def test_a_signal_that_is_ignored_stops_nothing(trt: ModuleType, dense: Path) -> None:
    sink, before = io.BytesIO(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Network(trt, dense).build(OPTIONS, sink, lambda amount: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sink.getvalue()


def test_a_full_disk_is_reported_as_such(trt: ModuleType, dense: Path) -> None:
    class Full:
        def write(self, data: memoryview) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Network(trt, dense).build(OPTIONS, Full())


def one_op(folder: Path, op_type: str, inputs: int = 1) -> Path:
    names = ["x", "y"][:inputs]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in names]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    node = helper.make_node(op_type, names, ["z"], name="model.layers.7/it")
    model = helper.make_model(
        helper.make_graph([node], "graph", values, [output]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("op_type", "inputs", "reason"),
    [("Unheard", 1, "Plugin not found"), ("Gemm", 2, "last dimension of input0 = 3 .* must match")],
)
def test_parse_errors_name_node_and_reason(
    trt: ModuleType, tmp_path: Path, op_type: str, inputs: int, reason: str
) -> None:
    path = one_op(tmp_path, op_type, inputs)
    expected = (
        rf"model\.onnx: TensorRT-RTX [\d.]+ cannot parse it: node 'model\.layers\.7/it' \({op_type}\): "
    )
    with pytest.raises(ExportError, match=rf"{expected}.*{reason}") as caught:
        Network(trt, path)
    assert "\n" not in str(caught.value) and "cudaError" not in str(caught.value)


def test_the_logger_outlives_the_network(trt: ModuleType, tmp_path: Path) -> None:
    """Objects of a reference cycle die in any order, and TensorRT's write to the log as they do."""
    network = Network(trt, one_op(tmp_path, "Relu"))
    logger = weakref.ref(network._logger)
    del network
    gc.collect()
    assert logger() is not None


def test_an_input_without_a_profile_is_refused(trt: ModuleType, tmp_path: Path) -> None:
    network = Network(trt, one_op(tmp_path, "Relu"))
    with pytest.raises(ExportError, match="an input 'x' no profile gives a shape"):
        network.build(OPTIONS, io.BytesIO())


def test_what_tensorrt_refuses_is_reported_with_its_reason(trt: ModuleType, dense: Path) -> None:
    # bfloat16 needs compute capability 8.0
    with pytest.raises(ExportError, match=r"cannot build the engine: .*sm75.*b16"):
        Network(trt, dense).build(BuildOptions("7.5", (DECODE,)), io.BytesIO())


def test_shapes_of_a_step() -> None:
    assert PREFILL.shapes(("batch", "sequence")) == ((1, 1), (1, 16), (4, 32))
    assert PREFILL.shapes(("batch",)) == ((1,), (1,), (4,))
    assert PREFILL.shapes(("batch", "wanted")) == ((1, 1), (1, 1), (4, 8))
    assert PREFILL.shapes(("batch", 2, "capacity", 64)) == ((1, 2, 1, 64), (1, 2, 64, 64), (4, 2, 256, 64))


def test_progress_of_nested_phases() -> None:
    progress = BuildProgress()
    assert progress.fraction() == 0
    progress.start("build", None, 2)
    progress.start("optimise", "build", 4)
    progress.step("optimise", 0)
    assert progress.fraction() == 1 / 8
    progress.step("optimise", 3)
    progress.finish("optimise")
    assert progress.fraction() == 1 / 8, (
        "it never goes back, even between a phase's end and its parent's step"
    )
    progress.step("build", 0)
    assert progress.fraction() == 1 / 2
    progress.step("unknown", 5)
    progress.step("build", 1)
    assert progress.fraction() == 1


def test_targets_of_rtx(trt: ModuleType) -> None:
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(rtx_targets(trt))
    check_target(trt, "A100", "8.0", ())
    with pytest.raises(
        ExportError,
        match=r"cannot build for H100 \(compute capability 9\.0\), only for .*8\.9.*\[tensorrt\]",
    ):
        check_target(trt, "H100", "9.0", ())


def test_gpus_that_rtx_does_not_list_are_told(trt: ModuleType) -> None:
    assert [each for each in ("8.0", "8.6", "8.9", "12.0") if unlisted(trt, each)] == ["8.0"]
    assert "lists no such GPU as supported" in str(unlisted(trt, "8.0"))
    full = SimpleNamespace(__name__="tensorrt", __version__="10.15.1")
    assert unlisted(full, "8.0") is None  # type: ignore[arg-type]


def test_the_full_tensorrt_builds_for_the_gpu_at_hand() -> None:
    full = SimpleNamespace(__name__="tensorrt", __version__="10.15.1")
    check_target(full, "H100", "9.0", ("8.0", "9.0"))  # type: ignore[arg-type]
    message = r"TensorRT 10\.15\.1 builds for the GPU in this machine \(9\.0\), not for A100 .*builder rtx"
    with pytest.raises(ExportError, match=message):
        check_target(full, "A100", "8.0", ("9.0",))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"\(no GPU\), not for H200 \(compute capability 9\.0\)") as caught:
        check_target(full, "H200", "9.0", ())  # type: ignore[arg-type]
    assert "rtx" not in str(caught.value), "TensorRT-RTX cannot build for it either"
