"""Values too small for float16: a few are in every model, a tensor of them is refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from q2export.errors import CheckpointError
from q2export.exporter.weights.convert import write_converted
from tests.exporter.weights.plans import plan_of


def tiny_values(lost: int) -> torch.Tensor:
    """A matrix ``[100, 100]`` with some zeros, ``lost`` of whose values round to zero in float16."""
    values = torch.full((10_000,), 2**-12)
    values[:lost] = torch.tensor([2**-25, -(2**-25), 2**-26, 2**-60, 2**-120] * 2000)[:lost]
    values[9_000:] = 0
    return values.view(100, 100).bfloat16()


@pytest.mark.parametrize("lost", [4_501, 9_000])
def test_a_tensor_that_float16_would_lose_is_refused(tmp_path: Path, lost: int) -> None:
    plan = plan_of(tmp_path, {"a.weight": tiny_values(lost)}, torch.float16)
    message = (
        rf"'a\.weight': {lost} of 9000 values become zero in F16, whose smallest is 6e-8: the tensor would be"
    )
    with pytest.raises(CheckpointError, match=message):
        write_converted(plan, io.BytesIO(), scan=True)
    write_converted(plan, io.BytesIO(), scan=False)


@pytest.mark.parametrize(("lost", "warned"), [(9, False), (10, True), (4_500, True)])
def test_values_that_become_zero_are_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: int, warned: bool
) -> None:
    plan = plan_of(tmp_path, {"a.weight": tiny_values(lost)}, torch.float16)
    write_converted(plan, io.BytesIO(), scan=True)
    assert (f"'a.weight': {lost} of 9000 values become zero in F16" in caplog.text) == warned
    assert bool(caplog.text) == warned


def test_smallest_values_that_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """2**-24 is the smallest number of float16; what is above half of it rounds to it."""
    tensors = {"a.weight": torch.tensor([[2**-24, -(2**-24), 1.001 * 2**-25]])}
    write_converted(plan_of(tmp_path, tensors, torch.float16), io.BytesIO(), scan=True)
    wide = {"a.weight": torch.tensor([[2**-120, 2**-130]])}
    write_converted(plan_of(tmp_path, wide, torch.bfloat16), io.BytesIO(), scan=True)
    assert caplog.text == ""
