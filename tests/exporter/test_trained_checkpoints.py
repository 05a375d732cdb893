"""The committed trained checkpoints: their layout is the published one, and their text reads like text."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.checkpoints import CHECKPOINTS

FOLDERS = ["qwen2-tiny", "qwen2-moe-tiny"]
MAX_BYTES = 4_000_000
# Perplexity per token of the first 512 tokens of held_out.txt: 35.25 and 39.42; untrained, about 1536.
PERPLEXITY_BOUND = {"qwen2-tiny": 36.0, "qwen2-moe-tiny": 40.0}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """``train.py`` as a module: it is a script beside its data, not part of a package."""
    spec = importlib.util.spec_from_file_location("checkpoint_train", CHECKPOINTS / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return CHECKPOINTS / str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """transformers' own model in fp32, the oracle."""
    torch = pytest.importorskip("torch", reason="torch is needed to run the checkpoints")
    transformers = pytest.importorskip("transformers", reason="transformers is the reference implementation")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def header(folder: Path) -> dict[str, Any]:
    """The JSON header of ``model.safetensors``, read without the library."""
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content: dict[str, Any] = json.loads(file.read(length))
    content.pop("__metadata__", None)
    return content


def expected_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Every tensor of a published Qwen2 or Qwen1.5-MoE checkpoint (all layers sparse), from its config."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    head_dim = hidden // config["num_attention_heads"]
    kv = head_dim * config["num_key_value_heads"]

    def mlp(prefix: str, width: int) -> dict[str, list[int]]:
        shapes = {"gate_proj": [width, hidden], "up_proj": [width, hidden], "down_proj": [hidden, width]}
        return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}

    tensors = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = [vocab, hidden]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        tensors[f"{layer}.input_layernorm.weight"] = [hidden]
        tensors[f"{layer}.post_attention_layernorm.weight"] = [hidden]
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            tensors[f"{layer}.self_attn.{name}.weight"] = [rows, hidden]
            tensors[f"{layer}.self_attn.{name}.bias"] = [rows]
        tensors[f"{layer}.self_attn.o_proj.weight"] = [hidden, hidden]
        if config["model_type"] == "qwen2":
            tensors |= mlp(f"{layer}.mlp", config["intermediate_size"])
            continue
        tensors[f"{layer}.mlp.gate.weight"] = [config["num_experts"], hidden]
        tensors[f"{layer}.mlp.shared_expert_gate.weight"] = [1, hidden]
        tensors |= mlp(f"{layer}.mlp.shared_expert", config["shared_expert_intermediate_size"])
        for expert in range(config["num_experts"]):
            tensors |= mlp(f"{layer}.mlp.experts.{expert}", config["moe_intermediate_size"])
    return tensors


def test_folder_is_small_and_complete(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(sizes) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) <= MAX_BYTES


def test_tensors_are_those_of_the_published_layout(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    packed = header(folder)
    assert {name: entry["shape"] for name, entry in packed.items()} == expected_shapes(config)
    assert {entry["dtype"] for entry in packed.values()} == {"BF16"}
    # The spelling of published files, not that of transformers 5.
    assert config["torch_dtype"] == "bfloat16" and config["rope_theta"] == 10000.0
    assert not {"dtype", "rope_parameters", "layer_types"} & set(config)


def test_transformers_takes_every_tensor(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reference implementation")
    _, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(problems.values()), problems


def test_tokenizer_round_trip_and_special_tokens(folder: Path, script: ModuleType) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers reads tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    fields = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))

    for text in (script.held_out_text(), "naïve 北京 🙂\r\n\ttabs", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    ids = [tokenizer.token_to_id(text) for text in script.SPECIAL_TOKENS]
    assert ids == [1527, 1528, 1529] and tokenizer.get_vocab_size() <= config["vocab_size"]
    assert [fields["added_tokens_decoder"][str(i)]["content"] for i in ids] == list(script.SPECIAL_TOKENS)
    end, _, im_end = ids
    assert generation["eos_token_id"] == (end if folder.name == "qwen2-tiny" else [im_end, end])


def test_chat_template_renders_as_qwen2(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers renders the chat template")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is a dict?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nWhat is a dict?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_held_out_perplexity(folder: Path, model: Any, script: ModuleType) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(script.held_out_text()).ids[:512]
    text = tokenizer.decode(ids)
    score = script.score(model, tokenizer, text)
    assert score.bytes == len(text.encode()) and 500 <= score.tokens <= 520
    assert math.exp(score.loss) < PERPLEXITY_BOUND[folder.name]


def test_greedy_text_is_printable(folder: Path, model: Any) -> None:
    import torch
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode("The statement").ids
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=48, do_sample=False)[0].tolist()
    text = tokenizer.decode(tokens[len(prompt) :])
    assert all(character.isprintable() or character == "\n" for character in text)
    words = {word.strip('.,()"*') for word in text.split()}
    assert len(words) >= 8 and words & {"the", "is", "of", "a"}, text


def test_training_text_holds_nothing_held_out(script: ModuleType) -> None:
    documents = script.training_documents(script.read_topics())
    held_out = script.paragraphs(script.held_out_text())
    assert len(held_out) > 50 and len(documents) > 20
    trained = {block for document in documents for block in script.paragraphs(document)}
    assert not trained & set(held_out)


def test_topic_inside_another_is_trained_once(script: ModuleType) -> None:
    section = "A statement that is longer than forty characters, certainly."
    other = "Another statement that is longer than forty characters, too."
    held = script.paragraphs(script.held_out_text())[0]
    topics = {"section": section, "chapter": f"{section}\n\n{other}\n\n{held}", "yield": other * 9}
    assert script.training_documents(topics) == [f"{section}\n\n{other}"]


def test_score_of_a_uniform_model(script: ModuleType) -> None:
    torch = pytest.importorskip("torch", reason="torch is needed to score")
    from types import SimpleNamespace

    class Uniform:
        def eval(self) -> None: ...

        def __call__(self, input_ids: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 7))

    class Bytes:
        def encode(self, text: str) -> Any:
            return SimpleNamespace(ids=[index % 7 for index in range(len(text))])

    text = "x" * 29
    score = script.score(Uniform(), Bytes(), text, length=8)
    expected = len(script.SPECIAL_TOKENS[0] + text) - 1  # this tokenizer splits the end token into letters
    assert score.tokens == expected and score.bytes == 29
    assert score.loss == pytest.approx(math.log(7))


def test_script_imports_without_torch() -> None:
    code = "import sys, train; train.held_out_text(); assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=CHECKPOINTS, check=True)


def test_script_asks_for_the_output(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main(["--model", "dense"])
    assert stop.value.code == 2
    assert "--model needs --output" in capsys.readouterr().err
