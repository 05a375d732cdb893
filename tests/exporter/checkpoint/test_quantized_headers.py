"""Headers of quantized checkpoints: integers are accepted where they are expected, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import SINGLE_FILE, open_checkpoint
from q2export.exporter.checkpoint.safetensors_header import QUANTIZED_DTYPES
from tests.exporter.checkpoint.test_folder import values_of


def test_integers_of_quantized_checkpoints(tmp_path: Path) -> None:
    tensors = {
        "codes": np.arange(6, dtype="<u1").reshape(2, 3),
        "order": np.array([3, -1], "<i4"),
        "scale": np.float32([0.5]),
    }
    save_file(tensors, tmp_path / SINGLE_FILE)
    found = open_checkpoint(tmp_path, QUANTIZED_DTYPES).tensors
    assert {name: ref.dtype for name, ref in found.items()} == {"codes": "U8", "order": "I32", "scale": "F32"}
    assert values_of(found["codes"], block_bytes=4).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values_of(found["order"]).view("<i4").tolist() == [3, -1]
    assert open_checkpoint(tmp_path, QUANTIZED_DTYPES).dtype == "F32"
    with pytest.raises(
        CheckpointError, match=r"expected dtype F32, F16, BF16, found '(I32|U8)'; a quantized"
    ):
        open_checkpoint(tmp_path)
    save_file({"a": np.ones(2, "<i8")}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"expected dtype F32, F16, BF16, I32, U8, found 'I64'$"):
        open_checkpoint(tmp_path, QUANTIZED_DTYPES)
