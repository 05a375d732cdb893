"""Memory of repacking: a few tiles, whatever the size of the model."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.quantization.published.repack import repack_weights
from q2export.exporter.quantization.published.source import load_published
from tests.exporter.quantization.published.checkpoints import AWQ, GPTQ, published_config
from tests.helpers.checkpoints import header_bytes

BYTES = {"I32": 4, "F16": 2}
TILE = 1 << 20


def write_sparse(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of zeros that occupies no disk; without ``g_idx``, which nobody needs here."""
    section = config["quantization_config"]
    header: dict[str, object] = {}
    position = 0

    def add(name: str, dtype: str, *shape: int) -> None:
        nonlocal position
        end = position + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end

    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    for name, shape in expected_parameters(parse_config(plain, "test config")).items():
        if not name.endswith("_proj.weight"):
            add(name, "F16", *shape)
            continue
        (outputs, inputs), module, groups = shape, name.removesuffix(".weight"), shape[1] // 32
        packed = (inputs, outputs // 8) if section["quant_method"] == "awq" else (inputs // 8, outputs)
        add(f"{module}.qweight", "I32", *packed)
        add(f"{module}.qzeros", "I32", groups, outputs // 8)
        add(f"{module}.scales", "F16", groups, outputs)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header_bytes(header))
        file.truncate(file.tell() + position)
    return folder


@pytest.mark.parametrize("section", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_a_few_tiles_are_in_memory(section: dict[str, Any], tmp_path: Path) -> None:
    """The codes of gate, up and down alone are 25 MB each."""
    sizes = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32}
    source = load_published(write_sparse(tmp_path / "published", published_config(section, **sizes)))
    assert source.nbytes > 90e6
    tracemalloc.start()
    try:
        repack_weights(source, tmp_path / "out.safetensors", tile_bytes=TILE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # scales and zero points of one weight (3.1 MB and, unpacked, 1.6 MB), and a few copies of a tile
    assert peak < 6.5e6 + 8 * TILE
