"""Conversion between F32, F16 and BF16 against torch, and the check for values that do not fit."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import TensorRef
from q2export.exporter.checkpoint.values import check_block, convert_block

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BITS = {"F32": (torch.int32, "<u4"), "F16": (torch.int16, "<u2"), "BF16": (torch.int16, "<u2")}
REF = TensorRef("model.norm.weight", "F32", (3, 5), Path("model-00002-of-00003.safetensors"), 64, 60)


def to_torch(raw: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(raw.view(f"<i{raw.itemsize}").copy()).view(DTYPES[dtype])


def bits_of(values: torch.Tensor, dtype: str) -> np.ndarray:
    return values.to(DTYPES[dtype]).view(BITS[dtype][0]).numpy().view(BITS[dtype][1])


def every_pattern(dtype: str) -> np.ndarray:
    """All 65,536 patterns of a half type; for F32, those next to every tie between two half numbers."""
    halves = np.arange(1 << 16, dtype="<u4")
    if dtype != "F32":
        return halves.astype("<u2")
    near_bfloat16_ties = (halves[:, None] << 16) + np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], "<u4")
    exponents = np.arange(96, 150, dtype="<u4") << 23  # around float16's range, subnormals included
    near_float16_ties = exponents[:, None] + np.arange(-2, 0x4000, 0xFFF, dtype="<i4").astype("<u4")
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            near_bfloat16_ties.ravel(),
            near_float16_ties.ravel(),
            rng.integers(0, 1 << 32, 100_001, dtype="<u4"),
        ]
    )


@pytest.mark.parametrize(("source", "target"), list(product(DTYPES, DTYPES)))
def test_conversion_is_torchs(source: str, target: str) -> None:
    raw = every_pattern(source)
    values = to_torch(raw, source)
    expected = values.to(DTYPES[target])
    found = to_torch(convert_block(raw, source, target), target)
    nan = values.isnan()
    assert bool(nan.any())
    assert torch.equal(found.isnan(), nan)  # NaN stays NaN and nothing else becomes one
    assert np.array_equal(bits_of(found[~nan], target), bits_of(expected[~nan], target))


@pytest.mark.parametrize(("source", "target"), list(product(DTYPES, DTYPES)))
def test_check_refuses_exactly_what_does_not_stay_finite(source: str, target: str) -> None:
    raw = every_pattern(source)
    finite = to_torch(raw, source).to(DTYPES[target]).isfinite().numpy()
    flat = TensorRef("t", source, (raw.size,), Path("f"), 0, raw.nbytes)
    check_block(raw[finite], source, target, flat, 0)
    positive = raw < (1 << (8 * raw.itemsize - 1))
    for sign in (positive, ~positive):  # one bad value of either sign, in the middle of good ones
        for bad in raw[~finite & sign][:: max((~finite & sign).sum() // 50, 1)]:
            block = raw[finite][:7].copy()
            block[4] = bad
            with pytest.raises(CheckpointError, match=r"'t'\[4\]"):
                check_block(block, source, target, flat, 0)


@pytest.mark.parametrize(
    ("source", "target", "value", "message"),
    [
        ("F32", "F16", 65520.0, "65520.0 is beyond F16 (largest 65504)"),
        ("BF16", "F16", -65536.0, "-65536.0 is beyond F16 (largest 65504)"),
        ("F32", "BF16", 3.4e38, "is beyond BF16"),
        ("F32", "F32", float("inf"), "inf, expected a finite number"),
        ("F16", "F32", float("-inf"), "-inf, expected a finite number"),
        ("BF16", "BF16", float("nan"), "nan, expected a finite number"),
    ],
)
def test_message_names_file_tensor_index_and_value(
    source: str, target: str, value: float, message: str
) -> None:
    raw = bits_of(torch.tensor([1.0, 2.0, value, value]), source).copy()
    with pytest.raises(CheckpointError) as caught:
        check_block(raw, source, target, REF, start=9)  # the third element is number 11 of [3, 5]
    text = str(caught.value)
    assert text.startswith("model-00002-of-00003.safetensors: tensor 'model.norm.weight'[2, 1]: ")
    assert message in text


def test_largest_values_pass() -> None:
    check_block(bits_of(torch.tensor([65519.9, -65519.9]), "F32"), "F32", "F16", REF, 0)
    check_block(bits_of(torch.tensor([65280.0]), "BF16"), "BF16", "F16", REF, 0)


def test_empty_block() -> None:
    assert convert_block(np.empty(0, "<u4"), "F32", "BF16").size == 0
    check_block(np.empty(0, "<u2"), "BF16", "F16", REF, 0)
