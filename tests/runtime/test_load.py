from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from q2export.errors import ConfigError, OptionError, PackageError
from q2export.package import reader as package_reader
from q2export.runtime import load
from q2export.runtime.backends import onnxruntime as backend_module
from tests.runtime.fakes import END, FakeBackend, byte_tokenizer


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A package folder without an engine; ``opened`` records how reader and backend were called."""
    record: dict[str, Any] = {
        "folder": tmp_path,
        "target": "onnxruntime",
        "tensorrt": None,
    }

    def read_package(folder: Path, check: str) -> object:
        record["check"] = check
        manifest = SimpleNamespace(
            target=record["target"],
            engine=SimpleNamespace(tensorrt=record["tensorrt"], vocab_size=300),
            threads=3,
        )
        return SimpleNamespace(folder=folder, manifest=manifest, rebuild_command=lambda: "q2export build")

    def backend(folder: Path, engine: object, *, threads: int, profile: Path | None) -> FakeBackend:
        assert profile is None
        record.update(engine=engine, threads=threads)
        return FakeBackend(vocab_size=300)

    monkeypatch.setattr(package_reader, "read_package", read_package)
    monkeypatch.setattr(backend_module, "OnnxRuntimeBackend", backend)
    return record


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def test_package_with_text(opened: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    folder = opened["folder"]
    byte_tokenizer()._core.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"eos_token": END, "chat_template": "{{ eos_token }}!"})
    write(folder, "generation_config.json", {"eos_token_id": 5, "temperature": 0.5, "num_beams": 4})
    engine = load(folder, check="full")
    assert (opened["check"], opened["threads"]) == ("full", 3)
    assert engine.defaults.eos_token_ids == (5,)
    assert engine.defaults.options.temperature == 0.5
    assert engine.chat_prompt([{"role": "user", "content": "x"}]) == byte_tokenizer().encode(f"{END}!")
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder / 'generation_config.json'}: num_beams=4 is not supported and has no effect"
    ]


def test_package_of_an_engine_alone(opened: dict[str, Any]) -> None:
    engine = load(opened["folder"], threads=0)
    assert (engine.tokenizer, engine.chat_template, opened["threads"]) == (None, None, 0)
    assert len(engine.generate([1, 2], max_new_tokens=3).token_ids) == 3


def test_end_of_text_token_outside_the_vocabulary_is_refused(opened: dict[str, Any]) -> None:
    write(opened["folder"], "generation_config.json", {"eos_token_id": 300})
    with pytest.raises(ConfigError, match="eos_token_id 300 is outside the engine's vocabulary of 300"):
        load(opened["folder"])


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_package_of_a_graph_without_an_engine_is_refused(opened: dict[str, Any], target: str) -> None:
    opened["target"] = target
    with pytest.raises(PackageError, match=f"holds a graph for target '{target}', no engine.*q2export build"):
        load(opened["folder"])


def test_tensorrt_engine_goes_to_its_own_backend(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from q2export.runtime.backends.tensorrt import executor

    def open_backend(folder: Path, info: object, built: object, rebuild_command: str) -> FakeBackend:
        opened.update(built=built, rebuild_command=rebuild_command)
        return FakeBackend()

    monkeypatch.setattr(executor, "open_backend", open_backend)
    opened.update(target="tensorrt", tensorrt="what it was built with")
    load(opened["folder"])
    assert (opened["built"], opened["rebuild_command"]) == ("what it was built with", "q2export build")
    assert "threads" not in opened
    with pytest.raises(OptionError, match=r"threads is for engines on the CPU; .* TensorRT"):
        load(opened["folder"], threads=2)


@pytest.mark.parametrize("threads", [1.5, "2", 2**31, -1, True, 100_000])
def test_threads_beyond_the_machine_are_refused(opened: dict[str, Any], threads: Any) -> None:
    with pytest.raises(PackageError, match=r"threads must be an integer from 0 .* found"):
        load(opened["folder"], threads=threads)
    assert "threads" not in opened
