"""What is refused for want of GPU memory says what would fit, and what it says is then accepted."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from q2export import api
from q2export.cli.main import main
from q2export.errors import ProfileError
from q2export.pipeline import engine as engine_build
from tests.helpers.checkpoints import tiny_config, write_sparse_checkpoint

LARGE: dict[str, Any] = {
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
    },
    "72B": {
        "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 32768,
    },
    "57B-A14B": {
        "model_type": "qwen2_moe", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151936, "num_experts": 64,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2560, "shared_expert_intermediate_size": 20480,
        "max_position_embeddings": 32768,
    },
}  # fmt: skip


@pytest.fixture
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder for every GPU; nothing is built."""
    builder = ModuleType("tensorrt")
    builder.__version__ = "10.15.1"  # type: ignore[attr-defined]
    monkeypatch.setattr(engine_build, "choose_builder", lambda profile: builder)


def refusal(model: Path, profile: str, overrides: dict[str, object]) -> ProfileError:
    with pytest.raises(ProfileError, match=" GiB, but batch ") as caught:
        api.plan(model, profile=profile, overrides=overrides)
    return caught.value


@pytest.mark.usefixtures("any_gpu")
@pytest.mark.parametrize(
    ("name", "profile", "overrides", "words", "ways"),
    [
        (
            "72B", "a100", {},
            r"; not even one sequence fits; with int8 weights: batch \d+ .*; with int4 weights: batch 8 .*; "
            r"profile b200 has room with int8 weights$",
            [{"quantization.weights": "int4"}, {"profile": "b200", "quantization.weights": "int8"}],
        ),
        (
            "72B", "a100", {"quantization.weights": "int8", "batch.max": 2},
            r"; the largest that would fit: batch .*; with int4 weights: batch 2 with capacity 32768; "
            r"profile h200 has room$",
            [{"quantization.weights": "int4"}, {"profile": "h200"}],
        ),
        (
            "57B-A14B", "h100", {},
            r"; not even one sequence fits; with weights streamed from the host: batch 8 with .* 32768; "
            r"profile h200 has room$",
            [{"weight_streaming": True}, {"profile": "h200"}],
        ),
        (
            "7B", "l4", {"capacity.max": 65536},
            r"; the largest that would fit: batch 4 .*; with int8 weights: batch 4 .*; with int4 weights: "
            r"batch 4 with capacity 65536; profile rtx5090 has room$",
            [{"capacity.max": None}, {"batch.max": None}, {"profile": "rtx5090"}],
        ),
    ],
)  # fmt: skip
def test_every_way_out_is_accepted(
    tmp_path: Path,
    name: str,
    profile: str,
    overrides: dict[str, object],
    words: str,
    ways: list[dict[str, object]],
) -> None:
    model = write_sparse_checkpoint(tmp_path / "model", tiny_config(**LARGE[name]))
    error = refusal(model, profile, overrides)
    assert re.search(words, str(error)), error
    for way in ways:
        assert any(
            all(key in advice and value in (None, advice[key]) for key, value in way.items())
            for advice in error.advice
        ), (way, error.advice)
    for advice in map(dict, error.advice):
        chosen = str(advice.pop("profile", profile))
        api.plan(model, profile=chosen, overrides=overrides | advice)


@pytest.mark.usefixtures("any_gpu")
def test_quantized_experts_are_left_out_where_tensorrt_does_not_take_them(tmp_path: Path) -> None:
    """On 141 GB attention and shared experts in int8 leave room for more; routed experts stay in 16 bits."""
    model = write_sparse_checkpoint(tmp_path / "model", tiny_config(**LARGE["57B-A14B"]))
    error = refusal(model, "h200", {"batch.max": 24})
    assert {"quantization.weights": "int8", "quantization.keep": ["*.experts.*"]} in [
        {key: value for key, value in advice.items() if key.startswith("quantization.")}
        for advice in error.advice
    ]


@pytest.mark.usefixtures("any_gpu")
def test_the_command_line_shows_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_sparse_checkpoint(tmp_path / "model", tiny_config(**LARGE["72B"]))
    assert main(["build", "--model", str(model), "--profile", "a100", "--dry-run"]) == 1
    message = capsys.readouterr().err
    assert "--quantization int4 --set capacity.max=" in message
    assert message.endswith(" or --profile b200 --quantization int8\n")


@pytest.mark.usefixtures("any_gpu")
@pytest.mark.parametrize(
    ("sizes", "words", "ways"),
    [
        (
            {"batch.max": 64, "capacity.max": 65536},
            r"^the keys of a layer would have 2,147,483,648 elements .* 2,147,483,647; .*: batch.max 63 or",
            [{"batch.max": 63}, {"capacity.max": 65535}],
        ),
        (
            {"batch.max": 221, "capacity.max": 1024},
            r"^the logits of a step would have 2,150,793,216 elements with batch.max 221 and max_logits 64",
            [{"batch.max": 220}, {"max_logits": 63}],
        ),
    ],
)
def test_tensors_beyond_32_bits_are_refused(
    tmp_path: Path, sizes: dict[str, object], words: str, ways: list[dict[str, object]]
) -> None:
    model = write_sparse_checkpoint(tmp_path / "model", tiny_config(**LARGE["7B"]))
    overrides = {"memory_mib": 1 << 20, **sizes}
    with pytest.raises(ProfileError, match=words) as caught:
        api.plan(model, profile="h200", overrides=overrides)
    assert list(caught.value.advice) == ways
    for way in ways:
        api.plan(model, profile="h200", overrides=overrides | way)
