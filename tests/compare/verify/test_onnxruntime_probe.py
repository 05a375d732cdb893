"""The ONNX Runtime probe: what it exposes, that it agrees with PyTorch, and that it finds broken engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import q2export
from q2export.cli.main import main
from q2export.compare.verify.onnxruntime_probe import OnnxRuntimeProbe
from q2export.compare.verify.results import ParityReport
from q2export.exporter.export import load_source
from q2export.exporter.reference import CheckpointReference
from q2export.package.hashing import fingerprint_file, hash_file
from q2export.package.manifest import EngineInfo
from tests.helpers.checkpoints import tiny_config, write_checkpoint

LAYERS, BOUND = 4, 1e-4
CONFIGS: dict[str, dict[str, object]] = {
    "dense": {"head_dim": 16, "num_hidden_layers": LAYERS},
    "moe": {"head_dim": 16, "num_hidden_layers": LAYERS, "model_type": "qwen2_moe", "mlp_only_layers": [1]},
    "small-heads": {"head_dim": 8, "num_hidden_layers": LAYERS, "tie_word_embeddings": True},
}


@dataclass(frozen=True)
class Built:
    name: str
    checkpoint: Path
    package: Path
    engine: EngineInfo

    def probe(self) -> OnnxRuntimeProbe:
        return OnnxRuntimeProbe(self.package, self.engine, threads=1)

    def reference(self) -> CheckpointReference:
        return CheckpointReference(load_source(self.checkpoint))


def build(folder: Path, name: str) -> Built:
    """Weights are copied, so that damaging a package leaves the checkpoint whole."""
    checkpoint = write_checkpoint(folder / "checkpoint", tiny_config(**CONFIGS[name]))
    overrides = {"capacity.max": 40, "prefill_chunk": 6, "threads": 1}
    result = q2export.build(checkpoint, folder / "package", parity=False, weights="copy", overrides=overrides)
    return Built(name, checkpoint, result.package, result.manifest.engine)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    cache: dict[str, Built] = {}

    def get(name: str) -> Built:
        if name not in cache:
            cache[name] = build(tmp_path_factory.mktemp(name), name)
        return cache[name]

    return get


@pytest.fixture(params=CONFIGS)
def built(request: pytest.FixtureRequest, packages: Callable[[str], Built]) -> Built:
    return packages(request.param)


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 131, count).tolist()


def test_activations(built: Built) -> None:
    """Every activation, in the order of computation; the router only where there is one."""
    found = built.probe().activations()
    inner = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    inner += ["self_attn.attention", "self_attn.o_proj", "post_attention_layernorm"]
    expected: list[tuple[str, int | None]] = [("model.embed_tokens", None)]
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        router = ["mlp.gate"] if built.name == "moe" and layer != 1 else []
        expected += [(f"{path}.{point}", layer) for point in [*inner, *router, "mlp"]] + [(path, layer)]
    expected += [("model.norm", None), ("lm_head", None)]
    assert [(point.name, point.layer) for point in found] == expected
    ops = {point.name: point.op for point in found}
    assert ops["model.embed_tokens"] == "Gather"
    assert ops["model.layers.1.input_layernorm"] == "RMSNormalization"
    assert ops["model.layers.1.self_attn.q_proj"] == ops["model.layers.1.mlp"] == ops["lm_head"] == "Q2Linear"
    assert ops["model.layers.2.self_attn.attention"] == "Q2RotaryAttention"


def test_captures_are_those_of_the_reference(built: Built) -> None:
    sequence, probe = tokens(13), built.probe()
    names = [point.name for point in probe.activations()]
    expected = built.reference().run([sequence], names).captures
    actual = probe.capture(sequence, names)
    assert actual.keys() == set(names)
    for name in names:
        assert actual[name].shape == expected[name][0].shape, name
        assert np.abs(actual[name] - expected[name][0]).max() <= BOUND, name


def test_capture_of_some(built: Built) -> None:
    captured = built.probe().capture([3, 4], ["model.layers.1.mlp", "lm_head"])
    assert {name: array.shape for name, array in captured.items()} == {
        "model.layers.1.mlp": (2, 56),
        "lm_head": (2, 131),
    }


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 20])
def test_score_crosses_chunk_borders(built: Built, count: int) -> None:
    sequence = tokens(count)
    expected = built.reference().run([sequence]).logits[0]
    actual = built.probe().score(sequence)
    assert actual.shape == expected.shape == (count, 131)
    assert np.abs(actual - expected).max() <= BOUND


@pytest.mark.parametrize("prompt", [1, 6, 15])
def test_greedy(built: Built, prompt: int) -> None:
    sequence = tokens(prompt)
    generated = built.probe().greedy(sequence, 9)
    logits = built.reference().run([[*sequence, *generated]]).logits[0]
    assert logits[prompt - 1 : -1].argmax(axis=-1).tolist() == generated


def test_whole_engine_passes(built: Built) -> None:
    report = q2export.verify(built.package, built.checkpoint, greedy_tokens=8)
    assert report.passed and report.divergence is None
    assert not any("more than rounding explains" in warning for warning in report.warnings)


# Engines broken on purpose. Each change is one a build could make by a fault of its own, so the manifest
# agrees with the changed file.


def describe_again(package: Path, name: str) -> None:
    """Make the manifest say what the file ``name`` now is."""
    path = package / name
    manifest = json.loads((package / "manifest.json").read_text())
    record = manifest["files"][name]
    record["bytes"] = path.stat().st_size
    record["sha256"], record["fingerprint"] = hash_file(path), fingerprint_file(path)
    (package / "manifest.json").write_text(json.dumps(manifest))


def perturb(package: Path, tensor: str, element: int, change: float) -> None:
    """Add ``change`` to one element of a weight where the ONNX file says it lies."""
    model = onnx.load(package / "model.onnx", load_external_data=False)
    (initializer,) = (one for one in model.graph.initializer if one.name == tensor)
    entry = {item.key: item.value for item in initializer.external_data}
    with (package / entry["location"]).open("r+b") as file:
        file.seek(int(entry["offset"]) + 4 * element)
        value = np.frombuffer(file.read(4), "<f4") + np.float32(change)
        file.seek(-4, 1)
        file.write(value.tobytes())
    describe_again(package, entry["location"])


def edit_graph(package: Path, edit: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(package / "model.onnx", load_external_data=False)
    edit(model.graph)
    (package / "model.onnx").write_bytes(model.SerializeToString())
    describe_again(package, "model.onnx")


def attention_of(graph: onnx.GraphProto, layer: int) -> onnx.NodeProto:
    (node,) = (
        node
        for node in graph.node
        if node.op_type == "Q2RotaryAttention" and f".{layer}.self_attn" in node.name
    )
    return node


def other_rope(graph: onnx.GraphProto) -> None:
    """Layer 2 rotates with frequencies of its own, three per cent off."""
    node = attention_of(graph, 2)
    (frequencies,) = (one for one in graph.initializer if one.name == node.input[7])
    wrong = onnx.numpy_helper.to_array(frequencies) * np.float32(1.03)
    graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong_frequencies"))
    node.input[7] = "wrong_frequencies"


def short_window(graph: onnx.GraphProto) -> None:
    (attribute,) = (a for a in attention_of(graph, 1).attribute if a.name == "sliding_window")
    attribute.i = 9


def other_epsilon(graph: onnx.GraphProto) -> None:
    (node,) = (node for node in graph.node if node.name.startswith("model.layers.3.input_layernorm/"))
    (attribute,) = (a for a in node.attribute if a.name == "epsilon")
    attribute.f = 1e-2


def swapped_projections(graph: onnx.GraphProto) -> None:
    nodes = {node.name: node for node in graph.node}
    key, value = (nodes[f"model.layers.1.self_attn.{name}/Q2Linear"] for name in ("k_proj", "v_proj"))
    key.input[1], value.input[1] = value.input[1], key.input[1]


@dataclass(frozen=True)
class Fault:
    """How to break which package, and the layer, point and op to be named."""

    package: str
    layer: int | None
    point: str
    op: str
    weight: tuple[str, int, float] | None = None
    edit: Callable[[onnx.GraphProto], None] | None = None


FAULTS = {
    "one weight of q_proj": Fault(
        "dense", 0, "self_attn.q_proj", "Q2Linear", ("model.layers.0.self_attn.q_proj.weight", 700, 0.3)
    ),
    "one bias of v_proj": Fault(
        "dense", 3, "self_attn.v_proj", "Q2Linear", ("model.layers.3.self_attn.v_proj.bias", 31, 0.05)
    ),
    "one weight of down_proj": Fault(
        "dense", 2, "mlp", "Q2Linear", ("model.layers.2.mlp.down_proj.weight", 9, 0.3)
    ),
    "one weight of the final norm": Fault(
        "dense", None, "model.norm", "RMSNormalization", ("model.norm.weight", 55, 0.05)
    ),
    "one weight of the head": Fault(
        "dense", None, "lm_head", "Q2Linear", ("lm_head.weight", 56 * 130 + 3, 0.05)
    ),
    "rope of one layer": Fault("dense", 2, "self_attn.attention", "Q2RotaryAttention", edit=other_rope),
    "window of one layer": Fault("dense", 1, "self_attn.attention", "Q2RotaryAttention", edit=short_window),
    "epsilon of one norm": Fault("dense", 3, "input_layernorm", "RMSNormalization", edit=other_epsilon),
    "keys and values swapped": Fault("dense", 1, "self_attn.k_proj", "Q2Linear", edit=swapped_projections),
    "one weight of a router": Fault(
        "moe", 2, "mlp.gate", "Q2Linear", ("model.layers.2.mlp.gate.weight", 60, 0.2)
    ),
    "one weight of an expert": Fault(
        "moe", 3, "mlp", "Add", ("model.layers.3.mlp.experts.4.up_proj.weight", 21, 1.0)
    ),
    "one weight of a shared expert gate": Fault(
        "moe", 0, "mlp", "Add", ("model.layers.0.mlp.shared_expert_gate.weight", 8, 0.3)
    ),
    "one weight of k_proj, heads of 12": Fault(
        "small-heads", 1, "self_attn.k_proj", "Q2Linear", ("model.layers.1.self_attn.k_proj.weight", 5, 0.5)
    ),
}


def broken(packages: Callable[[str], Built], fault: Fault, folder: Path) -> tuple[Built, Path]:
    built = packages(fault.package)
    package = folder / "broken"
    shutil.copytree(built.package, package)
    if fault.weight is not None:
        perturb(package, *fault.weight)
    if fault.edit is not None:
        edit_graph(package, fault.edit)
    return built, package


def check_named(report: ParityReport, fault: Fault) -> None:
    assert not report.passed
    assert any("logit error" in failure for failure in report.failures)
    assert report.divergence is not None
    point = report.divergence.activation
    name = fault.point if fault.layer is None else f"model.layers.{fault.layer}.{fault.point}"
    assert (report.divergence.layer, point.name, point.op) == (fault.layer, name, fault.op)
    assert point.diverges and not report.divergence.gradual


@pytest.mark.parametrize("name", FAULTS)
def test_broken_engine_is_found_out(packages: Callable[[str], Built], tmp_path: Path, name: str) -> None:
    fault = FAULTS[name]
    built, package = broken(packages, fault, tmp_path)
    check_named(q2export.verify(package, built.checkpoint, greedy_tokens=4), fault)


def test_engine_with_a_weight_that_is_not_finite(packages: Callable[[str], Built], tmp_path: Path) -> None:
    fault = Fault(
        "dense", 1, "self_attn.o_proj", "Gemm", ("model.layers.1.self_attn.o_proj.weight", 0, np.nan)
    )
    built, package = broken(packages, fault, tmp_path)
    report = q2export.verify(package, built.checkpoint, greedy_tokens=0)
    assert not report.passed and report.total is None
    assert "engine logits are not finite: nan" in report.failures[0]
    assert report.divergence is not None
    assert report.divergence.activation.name == "model.layers.1.self_attn.o_proj"


def test_command_line(
    packages: Callable[[str], Built], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code, JSON or text on stdout, and the layer in both."""
    fault = FAULTS["rope of one layer"]
    built, package = broken(packages, fault, tmp_path)
    arguments = ["--model", str(built.checkpoint), "--greedy-tokens", "4"]
    assert main(["verify", str(built.package), *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == []
    assert main(["verify", str(package), *arguments, "--json"]) == 1
    named = "model.layers.2.self_attn.attention"
    assert json.loads(capsys.readouterr().out)["divergence"]["activation"]["name"] == named
    assert main(["verify", str(package), *arguments, "--report", str(tmp_path / "report.html")]) == 1
    assert f"first divergence: layer 2, {named}" in capsys.readouterr().out
    assert named in (tmp_path / "report.html").read_text()


def test_damaged_package_is_refused_before_it_is_compared(
    packages: Callable[[str], Built], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = packages("dense")
    package = tmp_path / "damaged"
    shutil.copytree(built.package, package)
    manifest = (package / "manifest.json").read_text()
    perturb(package, "model.norm.weight", 0, 1.0)
    (package / "manifest.json").write_text(manifest)
    assert main(["verify", str(package), "--model", str(built.checkpoint)]) == 1
    error = capsys.readouterr().err
    assert "model.safetensors is not the file manifest.json describes: expected sha256" in error
    assert "Traceback" not in error
