"""Published checkpoints that are refused, each by name, with nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q2export.errors import CheckpointError, ConfigError
from q2export.exporter.quantization.published.repack import repack_checkpoint
from q2export.exporter.quantization.published.source import load_published
from tests.exporter.quantization.models import MOE
from tests.exporter.quantization.published.checkpoints import (
    AWQ,
    DOWN_PROJ,
    GATE_PROJ,
    GPTQ,
    K_PROJ,
    Q_PROJ,
    Tensors,
    published_config,
    tensors_of,
    write_published,
)


def set_values(name: str, values: object, where: object = ...) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[name][where] = values

    return edit


def replaced(name: str, values: np.ndarray) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: values})


def removed(*names: str) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return edit


def unchanged(tensors: Tensors) -> None:
    pass


ACT_ORDER = GPTQ | {"desc_act": True}
BAD: dict[str, tuple[dict[str, Any], Callable[[Tensors], None], str]] = {
    "no scales": (GPTQ, removed(f"{Q_PROJ}.scales"), rf"1 missing: '{Q_PROJ}.scales'"),
    "no zero points": (AWQ, removed(f"{Q_PROJ}.qzeros"), rf"1 missing: '{Q_PROJ}.qzeros'"),
    "no codes": (GPTQ, removed(f"{Q_PROJ}.qweight"), rf"1 missing: '{Q_PROJ}.weight'; 3 surplus: '.*g_idx'"),
    "no g_idx": (ACT_ORDER, removed(f"{Q_PROJ}.g_idx"), rf"1 missing: '{Q_PROJ}.g_idx'"),
    "no bias": (GPTQ, removed(f"{Q_PROJ}.bias"), rf"1 missing: '{Q_PROJ}.bias'"),
    "desc_act not stated": (
        {name: value for name, value in GPTQ.items() if name != "desc_act"},
        removed(f"{Q_PROJ}.g_idx"),
        "1 missing: '.*g_idx'",
    ),
    "module twice": (
        GPTQ,
        replaced(f"{Q_PROJ}.weight", np.ones((64, 64), np.float16)),
        rf"4 surplus: '{Q_PROJ}.g_idx'",
    ),
    "g_idx in AWQ": (AWQ, replaced(f"{Q_PROJ}.g_idx", np.zeros(64, np.int32)), "1 surplus: '.*g_idx'"),
    "packed along the other side": (
        AWQ,
        replaced(f"{Q_PROJ}.qweight", np.zeros((8, 64), np.int32)),
        r"'.*q_proj.qweight' is I32 \[8, 64\], expected I32 \[64, 8\] \(model.safetensors\)",
    ),
    "other bits": (
        GPTQ | {"bits": 8},
        replaced(f"{Q_PROJ}.qweight", np.zeros((8, 64), np.int32)),
        r"gptq with 8 bits\): 1 of the wrong type or shape: .* is I32 \[8, 64\], expected I32 \[16, 64\]",
    ),
    "other group size": (
        GPTQ,
        replaced(f"{Q_PROJ}.scales", np.ones((1, 64), np.float16)),
        r"'.*q_proj.scales' is F16 \[1, 64\], expected F32 or F16 or BF16 \[2, 64\]",
    ),
    "unsigned bytes": (
        GPTQ,
        replaced(f"{Q_PROJ}.qzeros", np.zeros((2, 8), np.uint8)),
        r"'.*q_proj.qzeros' is U8 \[2, 8\], expected I32 \[2, 8\]",
    ),
    "plain weight of another shape": (
        GPTQ,
        replaced("lm_head.weight", np.ones((131, 32), np.float16)),
        r"'lm_head.weight' is F16 \[131, 32\], expected F32 or F16 or BF16 \[131, 64\]",
    ),
    "bias that is not zero": (
        GPTQ,
        replaced(f"{DOWN_PROJ}.bias", np.eye(1, 64, 3, dtype=np.float16)[0]),
        rf"tensor '{DOWN_PROJ}.bias': expected zeros, .*another value at \[3\]",
    ),
    "bias of AWQ": (AWQ, replaced(f"{DOWN_PROJ}.bias", np.zeros(64, np.float16)), "1 surplus: '.*bias'"),
    "g_idx too large": (
        ACT_ORDER,
        set_values(f"{Q_PROJ}.g_idx", 2, 5),
        rf"tensor '{Q_PROJ}.g_idx'\[5\]: expected a group of 0 to 1, found 2; the file is damaged",
    ),
    "g_idx negative": (ACT_ORDER, set_values(f"{Q_PROJ}.g_idx", -1, 0), r"g_idx'\[0\]: .* found -1"),
    "groups of different sizes": (
        ACT_ORDER,
        set_values(f"{DOWN_PROJ}.g_idx", 0, slice(0, 40)),
        rf"tensor '{DOWN_PROJ}.g_idx': group \d has \d+ inputs, expected 32; groups of different sizes",
    ),
    "g_idx though no act-order": (
        GPTQ,
        set_values(f"{Q_PROJ}.g_idx", [1, 0], [0, 63]),
        "the groups are not in order, yet desc_act is false",
    ),
    "q and k in different orders": (
        ACT_ORDER,
        lambda tensors: tensors[f"{K_PROJ}.g_idx"].sort(),
        rf"tensor '{K_PROJ}.g_idx': orders its inputs otherwise than '{Q_PROJ}.weight' orders the same ones",
    ),
    "zero points of v2 said to be v1": (
        GPTQ | {"sym": True},
        set_values(f"{Q_PROJ}.qzeros", np.array(0x88888888, np.uint32).view(np.int32)),
        rf"'{Q_PROJ}.qzeros': expected zero point 8 everywhere, .* found 9 for group 0 of output 0;",
    ),
    "one zero point of a symmetric model": (
        GPTQ | {"sym": True, "bits": 8},
        set_values(f"{Q_PROJ}.qzeros", 0x7F7E7F7F, (1, 5)),
        "expected zero point 128 everywhere, .* found 127 for group 1 of output 22;",
    ),
    "zero point 0 or 16": (
        GPTQ,
        set_values(f"{Q_PROJ}.qzeros", 0x7777F777, (1, 2)),
        "the packed zero point for group 1 of output 19 is 15, which readers .* take for 0 or for 16;",
    ),
    "zero point 0 or 256": (
        GPTQ | {"bits": 8},
        set_values(f"{Q_PROJ}.qzeros", -1, 0),
        "is 255, which readers",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_tensors(case: str, tmp_path: Path) -> None:
    section, edit, message = BAD[case]
    config = published_config(section)
    tensors, _ = tensors_of(config)
    folder = write_published(tmp_path / "published", config, tensors)
    load_published(folder)
    edit(tensors)
    write_published(folder, config, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_published(folder)
    assert str(caught.value).startswith(str(folder))
    assert len(str(caught.value)) < 600


def test_nothing_is_quantized(tmp_path: Path) -> None:
    config = published_config(GPTQ)
    tensors, _ = tensors_of(config, skip=lambda name: True)
    with pytest.raises(
        CheckpointError, match="no weight is quantized, so there should be no quantization_config"
    ):
        load_published(write_published(tmp_path, config, tensors))


@pytest.mark.parametrize("name", ["model.embed_tokens", "model.layers.0.mlp.gate"])
def test_weights_that_must_not_be_quantized(name: str, tmp_path: Path) -> None:
    config = published_config(GPTQ, **(MOE | {"vocab_size": 96, "num_experts": 8}))
    tensors, _ = tensors_of(config)
    shape = tensors.pop(f"{name}.weight").shape
    tensors[f"{name}.qweight"] = np.zeros((shape[1] // 8, shape[0]), np.int32)
    with pytest.raises(CheckpointError, match=rf"'{name}.weight' is quantized, .*in floating point"):
        load_published(write_published(tmp_path, config, tensors))


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = published_config(GPTQ, intermediate_size=72)
    tensors, _ = tensors_of(config)
    with pytest.raises(
        CheckpointError, match=rf"'{DOWN_PROJ}.weight' has rows of 72 values, .* multiple of 32"
    ):
        load_published(write_published(tmp_path, config, tensors))


def test_outputs_that_fill_no_word(tmp_path: Path) -> None:
    config = published_config(GPTQ, vocab_size=131)
    tensors, _ = tensors_of(config)
    tensors["lm_head.qweight"] = np.zeros((8, 131), np.int32)
    del tensors["lm_head.weight"]
    with pytest.raises(
        CheckpointError, match=r"'lm_head.weight' \[131, 64\] does not fill whole 32-bit words"
    ):
        load_published(write_published(tmp_path, config, tensors))


def test_act_order_of_down_beside_a_gate_in_floating_point(tmp_path: Path) -> None:
    config = published_config(ACT_ORDER)
    tensors, _ = tensors_of(config, skip=lambda name: name.startswith(GATE_PROJ))
    with pytest.raises(
        CheckpointError, match=rf"'{DOWN_PROJ}.weight' has .*, but '{GATE_PROJ}.weight' is not"
    ):
        load_published(write_published(tmp_path, config, tensors))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{DOWN_PROJ}.scales", r"down_proj.scales'\[1, 2\]: nan, expected a finite number"),
        ("model.norm.weight", r"'model.norm.weight'\[1\]: nan"),
    ],
)
def test_values_that_are_not_finite(name: str, message: str, tmp_path: Path) -> None:
    config = published_config(GPTQ)
    tensors, _ = tensors_of(config)
    tensors[name][(1, 2) if tensors[name].ndim == 2 else 1] = np.nan
    source = load_published(write_published(tmp_path / "published", config, tensors))
    with pytest.raises(CheckpointError, match=message):
        repack_checkpoint(source, tmp_path / "new" / "stored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


@pytest.mark.parametrize("value", [0.1, 1e-9, 1e6])
def test_scales_that_are_no_numbers_of_float16(value: float, tmp_path: Path) -> None:
    config = published_config(GPTQ)
    tensors, _ = tensors_of(config)
    tensors[f"{DOWN_PROJ}.scales"] = tensors[f"{DOWN_PROJ}.scales"].astype(np.float32)
    tensors[f"{DOWN_PROJ}.scales"][1, 2] = value
    source = load_published(write_published(tmp_path / "published", config, tensors))
    message = rf"down_proj.scales'\[1, 2\]: {float(np.float32(value))} is no number of float16"
    with pytest.raises(CheckpointError, match=message):
        repack_checkpoint(source, tmp_path / "new" / "stored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    config = published_config(GPTQ)
    folder = write_published(tmp_path / "published", config, tensors_of(config)[0])
    source = load_published(folder)
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="it changed since it was opened"):
        repack_checkpoint(source, tmp_path / "stored")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors: cannot be read: No such file"):
        repack_checkpoint(source, tmp_path / "stored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]


def test_checkpoints_that_are_not_published_ones(tmp_path: Path) -> None:
    config = published_config(GPTQ)
    tensors, _ = tensors_of(config)
    folder = write_published(tmp_path / "published", config, tensors)
    repack_checkpoint(load_published(folder), tmp_path / "stored")
    with pytest.raises(
        ConfigError, match=r"expected that of a GPTQ or AWQ checkpoint, found the packed form"
    ):
        load_published(tmp_path / "stored")
    del config["quantization_config"]
    with pytest.raises(ConfigError, match=r"config.json: quantization_config: expected .*, found none"):
        load_published(write_published(folder, config, tensors))
