"""The traps of ONNX Runtime's MoE kernels: that they exist, and that no lowered graph falls into them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from q2export.errors import ExportError
from q2export.exporter.passes.onnxruntime.refuse_moe_traps import RefuseMoeTraps

TOKENS, HIDDEN, INNER, EXPERTS, TOP_K = 5, 16, 8, 4, 2
Array = npt.NDArray[np.float32]


def reference(hidden: Array, router: Array, gate_up: Array, down: Array) -> Array:
    """Softmax over all experts, top-k without renormalisation; gate and up rows alternate."""
    logits = hidden @ router
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    output = np.zeros_like(hidden)
    for token in range(len(hidden)):
        for expert in np.argsort(-probability[token])[:TOP_K]:
            projected = gate_up[expert] @ hidden[token]
            gate, up = projected[0::2], projected[1::2]
            output[token] += probability[token, expert] * (down[expert] @ (gate / (1 + np.exp(-gate)) * up))
    return output


def moe_model(guarded: bool, weights: tuple[Array, Array, Array]) -> onnx.ModelProto:
    """``y = MoE(x * 1)``, with or without a reader of MoE's input that waits for its output."""
    router, gate_up, down = weights
    constants = {
        "router": router,
        "fc1": gate_up,
        "fc2": down,
        "one": np.float32(1),
        "never": np.array(False),
    }
    moe = helper.make_node(
        "MoE",
        ["hidden", "logits", "fc1", "", "fc2"],
        ["routed"],
        name="layer/MoE",
        domain="com.microsoft",
        k=TOP_K,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=0,
    )
    last = (
        helper.make_node("Where", ["never", "hidden", "routed"], ["y"])
        if guarded
        else helper.make_node("Mul", ["routed", "one"], ["y"])
    )
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "router"], ["logits"]),
        moe,
        last,
    ]
    graph = helper.make_graph(
        nodes,
        "trap",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", HIDDEN])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.fixture
def weights() -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(3)
    shapes = ((HIDDEN, EXPERTS), (EXPERTS, 2 * INNER, HIDDEN), (EXPERTS, HIDDEN, INNER))
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)  # type: ignore[return-value]


def run(model: onnx.ModelProto, hidden: Array) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": hidden})[0])


def test_guard_refuses_exactly_what_onnxruntime_gets_wrong(weights: tuple[Array, Array, Array]) -> None:
    hidden = np.random.default_rng(4).standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    expected = reference(hidden, *weights)
    assert np.abs(expected).max() > 1

    trapped = moe_model(False, weights)
    # If this ever fails, ONNX Runtime has mended the kernel and the guard can go.
    assert not run(trapped, hidden).any(), "com.microsoft.MoE no longer returns zeros"
    with pytest.raises(ExportError, match=r"layer/MoE: com\.microsoft\.MoE returns zeros"):
        RefuseMoeTraps()(ir.from_proto(trapped))

    guarded = moe_model(True, weights)
    np.testing.assert_allclose(run(guarded, hidden), expected, atol=1e-4)
    assert RefuseMoeTraps()(ir.from_proto(guarded)).matched == 1


@pytest.mark.parametrize(
    ("normalize", "router_weights", "refused"), [(0, "", True), (0, "all", False), (1, "", False)]
)
def test_qmoe_needs_its_router_weights(normalize: int, router_weights: str, refused: bool) -> None:
    inputs = ["x", "logits", *["w"] * 12, router_weights]
    node = helper.make_node(
        "QMoE", inputs, ["y"], name="layer/QMoE", domain="com.microsoft", normalize_routing_weights=normalize
    )
    names = [name for name in dict.fromkeys(inputs) if name]
    graph = helper.make_graph(
        [node],
        "quantized",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("com.microsoft", 1)]))
    if refused:
        with pytest.raises(ExportError, match=r"layer/QMoE: com\.microsoft\.QMoE ignores"):
            RefuseMoeTraps()(model)
    else:
        assert RefuseMoeTraps()(model).matched == 1
