"""Configurations of the parity tests as TensorRT engines in both 16-bit types; built, not run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from q2export import api
from tests.helpers.checkpoints import tiny_config, write_checkpoint
from tests.test_parity_transformers import CONFIGS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="needs TensorRT-RTX: pip install 'q2export[rtx]'",
)
NAMES = [
    "untied-group1-d64",
    "group6-yarn-tied",
    "group8-d128-wider-than-hidden",
    "window-max-window-layers",
    "moe-norm-tied-group1",
    "moe-sparse-step2-yarn",
    "moe-mlp-only-no-bias",
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_configuration_builds(tmp_path: Path, name: str, dtype: str) -> None:
    model = write_checkpoint(tmp_path / "model", tiny_config(**CONFIGS[name]), dtype="BF16")
    overrides = {"builder": "rtx", "dtype": dtype}
    result = api.build(model, tmp_path / "package", profile="l40s", overrides=overrides, parity=False)
    engine = result.manifest.engine
    assert (engine.dtype, engine.format) == (dtype, "tensorrt")
    weights = 2 * result.manifest.model.parameters
    assert weights < result.manifest.files["rank0.engine"].bytes < weights + 3e6 * engine.num_hidden_layers
