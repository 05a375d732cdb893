"""Checkpoints for tests: tiny ones with random weights, and full-size ones that occupy no disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from q2export.contracts.dtypes import BY_SAFETENSORS
from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.parameters import expected_parameters
from q2export.exporter.checkpoint.values import convert_block

DATA = Path(__file__).resolve().parents[1] / "data"
CHECKPOINTS = DATA / "checkpoints"  # trained: qwen2-tiny and qwen2-moe-tiny
PUBLISHED = DATA / "published"  # quantized by other tools

SHARD_BYTES = 4_000_000_000  # what the Qwen2 repositories use

Header = dict[str, dict[str, object]]


def tiny_config(**overrides: object) -> dict[str, object]:
    """``config.json`` of a small dense model; with ``model_type="qwen2_moe"``, of a small mixture of experts.

    A value of ``None`` removes the field.
    """
    config: dict[str, object] = {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 56,
        "initializer_range": 0.02,
        "intermediate_size": 72,
        "max_position_embeddings": 512,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 131,
    }
    if overrides.get("model_type") == "qwen2_moe":
        config |= {
            "architectures": ["Qwen2MoeForCausalLM"],
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 40,
        }
    config |= overrides
    return {name: value for name, value in config.items() if value is not None}


def random_weights(config: Mapping[str, object], seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Float32 weights by Hugging Face name, of a scale that keeps activations near 1 and logits near 5."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in expected_parameters(parse_config(config, "test config")).items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("norm.weight"):
            values = 1 + values / 8
        elif name.endswith(".bias"):
            values /= 4
        elif name == "lm_head.weight":
            values *= 2 / math.sqrt(shape[1])
        elif name == "model.embed_tokens.weight":
            values *= 2 / math.sqrt(shape[1]) if config.get("tie_word_embeddings") else 1
        else:
            values /= math.sqrt(shape[1])
        weights[name] = values
    return weights


def write_checkpoint(
    folder: Path, config: Mapping[str, object], seed: int = 0, dtype: str = "F32", shards: int = 1
) -> Path:
    """Write ``config.json`` and random weights, in one file or in ``shards`` of them with an index."""
    weights = random_weights(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {**config, "torch_dtype": BY_SAFETENSORS[dtype].name})
    names = list(weights)
    weight_map = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = "model.safetensors" if shards == 1 else shard_name(number, shards)
        header = make_header([(name, weights[name].shape) for name in part], dtype)
        data = b"".join(
            convert_block(weights[name].ravel().view("<u4"), "F32", dtype).tobytes() for name in part
        )
        (folder / file).write_bytes(header_bytes(header) + data)
        weight_map |= dict.fromkeys(part, file)
    if shards > 1:
        total = sum(values.size for values in weights.values()) * BY_SAFETENSORS[dtype].itemsize
        write_index(folder, weight_map, total)
    return folder


def write_sparse_checkpoint(
    folder: Path, config: Mapping[str, object], dtype: str = "BF16", shards: int | None = None
) -> Path:
    """Write a full-size checkpoint of sparse files: right headers, zeros for values, no disk used.

    ``shards`` defaults to as many as keep each near 4 GB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    parameters = list(expected_parameters(parse_config(config, "test config")).items())
    sizes = [math.prod(shape) * BY_SAFETENSORS[dtype].itemsize for _, shape in parameters]
    count = shards or max(math.ceil(sum(sizes) / SHARD_BYTES), 1)
    ends = np.cumsum(sizes)
    owners = np.minimum((ends - 1) * count // ends[-1], count - 1)
    weight_map = {}
    for number in range(count):
        part = [parameters[i] for i in np.flatnonzero(owners == number)]
        file = "model.safetensors" if count == 1 else shard_name(number, count)
        header = header_bytes(make_header(part, dtype))
        with open(folder / file, "wb") as shard:
            shard.write(header)
            shard.truncate(
                len(header) + sum(math.prod(shape) for _, shape in part) * BY_SAFETENSORS[dtype].itemsize
            )
        weight_map |= {name: file for name, _ in part}
    if count > 1:
        write_index(folder, weight_map, int(ends[-1]))
    return folder


def shard_name(number: int, count: int) -> str:
    """``model-00001-of-00003.safetensors`` for the first of three."""
    return f"model-{number + 1:05}-of-{count:05}.safetensors"


def make_header(tensors: Sequence[tuple[str, tuple[int, ...]]], dtype: str) -> Header:
    """A safetensors header for tensors that follow each other without gaps."""
    header: Header = {}
    position = 0
    for name, shape in tensors:
        end = position + math.prod(shape) * BY_SAFETENSORS[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return header


def header_bytes(header: Mapping[str, object]) -> bytes:
    """The first bytes of a safetensors file: length, JSON, padded to 8 bytes as the library does."""
    content = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def split_file(path: Path) -> tuple[Header, bytes]:
    """The header (without metadata) and the data of a safetensors file."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def write_index(folder: Path, weight_map: Mapping[str, str], total_size: int) -> None:
    """Write ``model.safetensors.index.json``."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON as Hugging Face does."""
    path.write_text(json.dumps(content, indent=2) + "\n")
