"""What ``load`` refuses about text is refused by one function, which ``build`` calls as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from q2export.errors import ConfigError, Q2ExportError
from q2export.runtime.engine import Engine
from q2export.runtime.options import GenerationOptions
from q2export.runtime.text import open_text
from tests.runtime.fakes import END, FakeBackend, byte_tokenizer

VOCAB = 300


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_tokenizer()._core.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "tokenizer_config.json", {"eos_token": END, "chat_template": "{{ messages }}"})
    write(tmp_path, "generation_config.json", {"eos_token_id": 256})
    write(tmp_path, "config.json", {"eos_token_id": 256})
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(data)


def test_a_whole_folder_and_an_empty_one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = open_text(folder, VOCAB)
    assert text.tokenizer is not None
    assert text.chat_template is not None
    assert text.defaults.eos_token_ids == (256,)
    empty = open_text(tmp_path_factory.mktemp("empty"), VOCAB)
    assert (empty.tokenizer, empty.chat_template, empty.defaults.eos_token_ids) == (None, None, ())


BAD: list[tuple[str, object, str]] = [
    ("generation_config.json", {"eos_token_id": 300}, "eos_token_id 300 is outside"),
    ("generation_config.json", {"eos_token_id": [5, 300]}, "eos_token_id 300 is outside"),
    ("generation_config.json", {"eos_token_id": -1}, "eos_token_id must be"),
    ("generation_config.json", {"top_p": 0}, "top_p must be"),
    ("generation_config.json", {"top_k": [5]}, "top_k must be"),
    ("generation_config.json", [1, 2], "expected a JSON object"),
    ("generation_config.json", b"\xff", "generation_config.json"),
    ("generation_config.json", b"[" * 100_000, "generation_config.json"),
    ("tokenizer_config.json", {"chat_template": "{% for %}"}, "chat template, line 1"),
    ("tokenizer_config.json", {"chat_template": [{"name": "x", "template": "x"}]}, "'default'"),
    ("tokenizer_config.json", {"chat_template": 3}, "must be a string"),
    ("tokenizer_config.json", {"split_special_tokens": "yes"}, "split_special_tokens must be true or false"),
    ("chat_template.jinja", b"\xff", "UTF-8"),
    ("chat_template.jinja", b"{{ 1|nofilter }}", "nofilter"),
    ("chat_template.jinja", b"{% break %}", "cannot be compiled"),
    ("tokenizer.json", b"{}", "tokenizers cannot load it"),
    ("tokenizer.json", b"\xff", "tokenizers cannot load it"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=[f"{n}: {m}" for n, _, m in BAD])
def test_a_bad_file_is_named_with_its_folder(folder: Path, name: str, content: object, message: str) -> None:
    write(folder, name, content)
    with pytest.raises(ConfigError) as caught:
        open_text(folder, VOCAB)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_the_eos_token_of_config_json_is_checked_where_it_counts(folder: Path) -> None:
    write(folder, "config.json", {"eos_token_id": 300})
    assert open_text(folder, VOCAB).defaults.eos_token_ids == (256,)
    (folder / "generation_config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json: eos_token_id 300 is outside the .* of 300"):
        open_text(folder, VOCAB)


def test_the_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json: has token ids up to 257, .* has 200"):
        open_text(folder, 200)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 400), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        *("eos_token_id", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("max_new_tokens", "num_beams", "stop_strings", "max_length", "bad_words_ids"),
    ]
)
TEMPLATES = st.one_of(
    JSON,
    st.text("{}%# \nabc|()[]'.=messages", max_size=20),
    st.lists(
        st.fixed_dictionaries({"name": st.sampled_from(["default", "x"]), "template": JSON}), max_size=2
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(FIELDS, JSON, max_size=3), TEMPLATES, st.sampled_from(["generation_config", "config"]))
def test_what_is_opened_generates_and_the_rest_is_one_of_our_errors(
    folder: Path, fields: dict[str, Any], template: object, name: str
) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)
    write(folder, f"{name}.json", fields)
    write(folder, "tokenizer_config.json", {"chat_template": template})
    try:
        text = open_text(folder, VOCAB)
    except ConfigError:
        return
    engine = Engine(FakeBackend(vocab_size=VOCAB), tokenizer=text.tokenizer, defaults=text.defaults)
    assert engine.generate("x", seed=1).text is not None
    if text.chat_template is not None:
        try:
            text.chat_template.render([{"role": "user", "content": "x"}])
        except Q2ExportError as error:
            assert "chat template" in str(error)


LEGACY: list[dict[str, Any]] = [
    {},
    {"eos_token_id": [5, 6]},
    {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "max_new_tokens": 7},
    {"repetition_penalty": 1.2, "top_k": None, "do_sample": True},
]


@pytest.mark.parametrize("fields", LEGACY, ids=str)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_defaults_are_those_of_transformers(
    fields: dict[str, Any], name: str, tmp_path: Path, checkpoints: Path
) -> None:
    """``top_k`` is 50 where no file gives it; config.json counts where there is no generation_config.json."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    source = shutil.copytree(checkpoints / "qwen2-tiny", tmp_path / "model")
    (source / "generation_config.json").unlink()
    base = json.loads((source / "config.json").read_text()) if name == "config.json" else {}
    write(source, name, base | fields)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    expected, _ = model._prepare_generation_config(None)
    found = open_text(source, 2000).defaults
    options = found.options
    for field in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "max_new_tokens"):
        assert getattr(options, field) == getattr(expected, field), field
    assert options.min_p == (expected.min_p or 0)
    eos = expected.eos_token_id
    assert list(found.eos_token_ids) == ([] if eos is None else eos if isinstance(eos, list) else [eos])
    assert GenerationOptions().top_k == 50
