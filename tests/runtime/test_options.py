from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.generation_config import parse_generation_config, read_generation_defaults
from q2export.runtime.options import GenerationOptions, SamplingOptions

BAD_SAMPLING = [
    {"do_sample": 1},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "0.7"},
    {"temperature": True},
    {"top_k": -1},
    {"top_k": 1.5},
    {"top_k": True},
    {"top_p": 0},
    {"top_p": 1.01},
    {"top_p": float("nan")},
    {"min_p": -0.01},
    {"min_p": 1.5},
    {"repetition_penalty": 0},
    {"repetition_penalty": 10**400},
]


@pytest.mark.parametrize("bad", BAD_SAMPLING, ids=str)
def test_sampling_option_out_of_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(GenerationError, match=f"^{name} must be .*, found "):
        SamplingOptions(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.0},
        {"min_new_tokens": -1},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": ["a", 3]},
        {"stop": 3},
        {"ignore_eos": "yes"},
    ],
    ids=str,
)
def test_generation_option_out_of_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=f"^{next(iter(bad))} must be "):
        GenerationOptions(**bad)


def test_bounds_themselves_are_accepted() -> None:
    assert SamplingOptions(temperature=0, top_k=0, top_p=1, min_p=1, repetition_penalty=1e-3).greedy
    assert SamplingOptions(min_p=0, top_p=1e-9, temperature=5e-324, do_sample=True).greedy is False


def test_explicit_options_win_over_the_defaults() -> None:
    defaults = SamplingOptions(True, 0.7, 20, 0.8, 0.1, 1.05)
    asked = GenerationOptions(temperature=0.5, top_k=0, min_p=0.0)
    assert asked.sampling(defaults) == SamplingOptions(True, 0.5, 0, 0.8, 0.0, 1.05)
    assert GenerationOptions().sampling(defaults) == defaults


@pytest.mark.parametrize(
    ("asked", "default", "greedy"),
    [
        (GenerationOptions(), False, True),
        (GenerationOptions(), True, False),
        (GenerationOptions(temperature=0.8), False, False),  # a temperature is not dropped in silence
        (GenerationOptions(top_p=0.9), False, False),
        (GenerationOptions(seed=1), False, True),
        (GenerationOptions(repetition_penalty=1.1), False, True),
        (GenerationOptions(temperature=0), True, True),
        (GenerationOptions(temperature=0, do_sample=True), True, True),
        (GenerationOptions(temperature=0.8, do_sample=False), True, True),
    ],
)
def test_when_the_likeliest_token_is_taken(asked: GenerationOptions, default: bool, greedy: bool) -> None:
    assert asked.sampling(SamplingOptions(do_sample=default)).greedy is greedy


def test_seeds() -> None:
    assert GenerationOptions(seed=7).seeds(3) == [7, 7, 7]
    assert GenerationOptions(seed=[1, 2]).seeds(2) == [1, 2]
    assert GenerationOptions().seeds(2) == [None, None]
    for bad in (GenerationOptions(seed=[1, 2]), GenerationOptions(seed=-1), GenerationOptions(seed="abc")):  # type: ignore[arg-type]
        with pytest.raises(GenerationError, match=r"^seed must be"):
            bad.seeds(3)


def test_config_of_the_real_qwen2_instruct() -> None:
    config = {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "transformers_version": "4.37.0",
    }
    defaults = parse_generation_config(config, "generation_config.json")
    assert defaults.sampling == SamplingOptions(True, 0.7, 20, 0.8, 0.0, 1.05)
    assert defaults.eos_token_ids == (151645, 151643)
    assert defaults.max_new_tokens is None
    assert defaults.unsupported == ()


def test_null_counts_as_absent_and_idle_fields_are_not_reported() -> None:
    config = {"top_k": None, "eos_token_id": None, "num_beams": 1, "typical_p": 1.0, "max_length": 20}
    defaults = parse_generation_config(config, "g")
    assert defaults.sampling == SamplingOptions()
    assert defaults.eos_token_ids == ()
    assert defaults.unsupported == ()


def test_fields_that_would_change_the_text_are_reported() -> None:
    defaults = parse_generation_config({"num_beams": 4, "no_repeat_ngram_size": 3, "eos_token_id": 5}, "g")
    assert defaults.unsupported == ("no_repeat_ngram_size=3", "num_beams=4")
    assert defaults.eos_token_ids == (5,)


@pytest.mark.parametrize(
    "bad",
    [
        {"eos_token_id": "5"},
        {"eos_token_id": [5, True]},
        {"eos_token_id": -1},
        {"temperature": "hot"},
        {"top_p": 2},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_malformed_config_names_file_and_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^some/file\.json: {next(iter(bad))} must be .*found"):
        parse_generation_config(bad, "some/file.json")


def test_files_of_a_folder(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path).eos_token_ids == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "top_k": 3}))
    assert read_generation_defaults(tmp_path).eos_token_ids == (7,)
    assert read_generation_defaults(tmp_path).sampling == SamplingOptions()
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 4}))
    assert read_generation_defaults(tmp_path).eos_token_ids == ()  # as in transformers
    assert read_generation_defaults(tmp_path).sampling.top_k == 4
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: not valid JSON"):
        read_generation_defaults(tmp_path)
