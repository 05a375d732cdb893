"""Built implies loads: the last step of a build opens the package; one that does not open is not kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import q2export
from q2export import runtime
from tests.helpers.checkpoints import tiny_config, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", tiny_config(num_hidden_layers=1))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("generation_config.json", '{"eos_token_id": 1000000}', "eos_token_id 1000000 is outside"),
        ("generation_config.json", '{"top_p": 0}', "top_p"),
        ("chat_template.jinja", "{% for x in %}", "template"),
    ],
)
def test_what_would_not_load_is_refused_before_the_work(
    name: str, text: str, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = checkpoint / name
    path.write_text(text)
    try:
        for call in (q2export.plan, lambda model: q2export.build(model, tmp_path / "out", parity=False)):
            with pytest.raises(q2export.ConfigError, match=message) as caught:
                call(checkpoint)
            assert str(path) in str(caught.value)
    finally:
        path.unlink()
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_does_not_open_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> bytes:
        return b"not a model"

    monkeypatch.setattr("q2export.exporter.weights.attach.serialize", broken)
    with pytest.raises(q2export.PackageError, match=r"could not be loaded.*out/model\.onnx: is damaged"):
        q2export.build(checkpoint, tmp_path / "out", parity=False)
    assert list(tmp_path.iterdir()) == []


def test_the_texts_of_a_tensorrt_package_are_read_without_its_gpu(
    qwen2_tiny_package: Path, tmp_path: Path
) -> None:
    """The engine file is never opened: here it is none."""
    folder = tmp_path / "package"
    (folder / "weights").mkdir(parents=True)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.onnx",
        "weights.safetensors",
        "weights/model.safetensors",
    ):
        (folder / name).hardlink_to(qwen2_tiny_package / name)
    tensorrt = {
        "builder": "rtx", "builder_version": "1.7", "compute_capability": "8.0", "plugin_contract_version": 1,
        "version_compatible": False, "weight_streaming": False,
    }  # fmt: skip

    def write(eos: Mapping[str, int]) -> None:
        from q2export.package.hashing import hash_file

        path = folder / "generation_config.json"
        path.write_text(json.dumps(eos))
        manifest = json.loads((qwen2_tiny_package / "manifest.json").read_text())
        manifest["engine"] |= {"format": "tensorrt", "dtype": "float16", "kv_dtype": "float16"}
        manifest["engine"]["tensorrt"] = tensorrt
        manifest["target"] = "tensorrt"
        record = manifest["files"]["generation_config.json"]
        digest = hash_file(path)
        record |= {"bytes": path.stat().st_size, "sha256": digest, "fingerprint": digest}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    write({"eos_token_id": 1})
    runtime.check_loads(folder)
    write({"eos_token_id": 10**6})
    with pytest.raises(q2export.ConfigError, match=re.escape("eos_token_id 1000000 is outside")):
        runtime.check_loads(folder)
