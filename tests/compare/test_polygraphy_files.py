"""Files that polygraphy itself reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from q2export.compare.polygraphy_files import save_inputs, save_outputs
from q2export.errors import MissingDependencyError

polygraphy_json = pytest.importorskip("polygraphy.json", reason="polygraphy is not installed")

FEEDS = [
    {"input_ids": np.array([[3, 1, 4]], np.int64), "past_key.0": np.zeros((1, 2, 0, 4), np.float32)},
    {"input_ids": np.array([[1], [5]], np.int64).T, "past_key.0": np.ones((1, 2, 3, 4), np.float16)},
]
POLYGRAPHY = [sys.executable, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())"]


def assert_equal(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert list(left) == list(right)
        for name in left:
            assert left[name].dtype == right[name].dtype
            np.testing.assert_array_equal(left[name], right[name])


def test_inputs_are_read_by_polygraphy(tmp_path: Path) -> None:
    path = tmp_path / "inputs.json"
    save_inputs(path, FEEDS)
    assert_equal([dict(feed) for feed in polygraphy_json.load_json(str(path))], FEEDS)


def test_outputs_are_read_by_polygraphy(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from polygraphy.comparator import RunResults

    path = tmp_path / "outputs.json"
    outputs = [{"logits": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}]
    save_outputs(path, "q2export", outputs)
    assert capfd.readouterr() == ("", "")
    assert_equal([dict(iteration) for iteration in RunResults.load(str(path))["q2export"]], outputs)


def test_polygraphy_runs_and_compares_with_them(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negate", [x], [y])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), str(tmp_path / "model.onnx"))
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_inputs(tmp_path / "inputs.json", [{"x": value}])
    command = [f"{tmp_path}/model.onnx", "--onnxrt", "--load-inputs", f"{tmp_path}/inputs.json"]
    for scale, status in ((-1.0, 0), (-1.5, 1)):
        save_outputs(tmp_path / "outputs.json", "golden", [{"y": np.float32(scale) * value}])
        load = ["--load-outputs", f"{tmp_path}/outputs.json"]
        done = subprocess.run(
            [*POLYGRAPHY, "run", *command, *load], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr


def test_absent_polygraphy_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.json", None)
    with pytest.raises(MissingDependencyError, match=r"polygraphy's format.*pip install"):
        save_inputs(tmp_path / "inputs.json", FEEDS)
