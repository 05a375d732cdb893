"""Folders that look like a model and are none: a pruned hub cache, an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import q2export
from q2export.errors import CheckpointError, Q2ExportError
from q2export.exporter.checkpoint.config import load_config
from q2export.exporter.checkpoint.folder import TEXT_FILES
from q2export.inspect.inspection import inspect
from tests.helpers.checkpoints import tiny_config, write_checkpoint, write_json


@pytest.mark.parametrize("name", TEXT_FILES)
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str) -> None:
    """Without its target the file would not be copied, and the engine would generate other text."""
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    blob = tmp_path / "blob"
    blob.write_text("{}")
    (folder / name).symlink_to("../blob")
    load_config(folder)
    blob.unlink()
    with pytest.raises(CheckpointError, match=rf"model/{name}: leads to \.\./blob, which is not there"):
        load_config(folder)


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "build": q2export.build,
    "plan": lambda model, _: q2export.plan(model),
    "export": q2export.export,
    "quantize": q2export.quantize,
    "repack": q2export.repack,
    "inspect": lambda model, _: inspect(model),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_pruned_cache(tmp_path: Path, command: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    (folder / "generation_config.json").symlink_to("../blobs/0123")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: leads to \.\./blobs/0123"):
        COMMANDS[command](folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["d" * 300, "/".join(["d" * 200] * 21), "nothing\0"])
def test_what_cannot_be_a_path_is_no_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder or a hub id"):
        q2export.plan(tmp_path / name)


def test_a_link_to_weights_that_are_gone_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/4567")
    with pytest.raises(Q2ExportError, match=r"model\.safetensors: .*No such file"):
        q2export.plan(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_adapter_is_told_from_a_broken_checkpoint(tmp_path: Path, command: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_json(
        folder / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen2-7B", "peft_type": "LORA"}
    )
    (folder / "adapter_model.safetensors").touch()
    message = r"holds a LoRA adapter \(adapter_config\.json\) of 'Qwen/Qwen2-7B', not a model; merge it first"
    with pytest.raises(CheckpointError, match=message):
        COMMANDS[command](folder, tmp_path / "out")
