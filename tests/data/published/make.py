"""Make the published-style checkpoints of this folder with the packages that publish such checkpoints.

    python tests/data/published/make.py NAME...

Writes ``NAME/config.json``, ``NAME/model.safetensors`` and, the weights as the same package dequantizes them,
``dequantized/NAME.safetensors``. See README.md for what each is and which package it needs.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

HERE = Path(__file__).parent
VOCABULARY = 288  # bytes, an end of text, and padding to what AutoGPTQ packs
SEED = 20261121
TENSORS = ("qweight", "qzeros", "scales", "g_idx")

Tensors = dict[str, torch.Tensor]
Packed = tuple[Tensors, torch.Tensor]
"""The tensors of one module, and the float32 weight ``[out, in]`` they stand for."""


def tiny_model(moe: bool = False, **changes: object) -> PreTrainedModel:
    """One layer with random weights and biases: 96 columns are no multiple of 64, 32 rows fill four words."""
    torch.manual_seed(SEED)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "max_window_layers": 1,
        "bos_token_id": 256,
        "eos_token_id": 256,
        "initializer_range": 0.2,
    }
    if moe:
        sizes |= {
            "moe_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 64,
        }
    config = (Qwen2MoeConfig if moe else Qwen2Config)(**(sizes | changes))
    model = (Qwen2MoeForCausalLM if moe else Qwen2ForCausalLM)(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(torch.float16)


# GPTQModel quantizes whole models, on a CPU too.


def with_gptqmodel(name: str, model: PreTrainedModel, **options: object) -> None:
    """Quantize a tiny model with GPTQModel and write what it saves."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found]
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(0, 256, (16, 96), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        plain, saved = Path(scratch) / "plain", Path(scratch) / "saved"
        model.save_pretrained(plain)
        write_tokenizer(plain)
        quantizer = GPTQModel.load(str(plain), QuantizeConfig(device="cpu", offload_to_disk=False, **options))
        quantizer.quantize(
            [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens], batch_size=4
        )
        quantizer.save(str(saved))
        config = json.loads((saved / "config.json").read_text())
        tensors = load_file(saved / "model.safetensors")
        loaded = GPTQModel.load(str(saved), backend=BACKEND.TORCH, device="cpu", dtype=torch.float16)
        dequantized = dict(gptqmodel_weights(loaded.model))
    write(name, config, tensors, dequantized)


def gptqmodel_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What GPTQModel's modules multiply with, in float32: its float16 scales would round the products."""
    from gptqmodel.quantization.awq.utils.packing_utils import (  # type: ignore[import-not-found]
        dequantize_gemm,
    )

    for name, module in model.named_modules():
        if not hasattr(module, "qweight"):
            continue
        module.scales = module.scales.float()
        if hasattr(module, "dequantize_weight"):
            weight = module.dequantize_weight()
        else:
            weight = dequantize_gemm(
                module.qweight, module.qzeros, module.scales, module.bits, module.group_size
            )
        yield f"{name}.weight", weight.T.contiguous().float()


# AutoGPTQ and AutoAWQ quantize on a GPU only, but their modules pack and dequantize on a CPU. Their packages
# do not import beside transformers 5, so only the module is imported.


def module_of(name: str) -> types.ModuleType:
    """Import a submodule without running the ``__init__`` of the packages around it."""
    parts = name.split(".")
    path = next(Path(entry, parts[0]) for entry in sys.path if Path(entry, parts[0]).is_dir())
    for depth in range(1, len(parts)):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(path.joinpath(*parts[1:depth]))]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)


@torch.no_grad()
def nearest(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, ...]:
    """Scales and zero points, ``[out, groups]``, with which every group is spanned; no zero point is 0."""
    count = int(groups.max()) + 1
    low = torch.stack([weight[:, groups == group].amin(1) for group in range(count)], 1)
    high = torch.stack([weight[:, groups == group].amax(1) for group in range(count)], 1)
    if symmetric:
        high = torch.maximum(high.abs(), low.abs())
        return (2 * high / (2**bits - 1)).half().float(), torch.full_like(high, 2 ** (bits - 1))
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, torch.round(-low / scales).clamp(1, 2**bits - 1)


def autogptq(
    bits: int, group_size: int, act_order: bool, symmetric: bool
) -> Callable[[torch.nn.Linear], Packed]:
    """AutoGPTQ's packing of a linear layer."""
    quant_linear = module_of("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear

    def pack(linear: torch.nn.Linear) -> Packed:
        inputs, outputs = linear.in_features, linear.out_features
        size = inputs if group_size == -1 else group_size
        groups = torch.arange(inputs, dtype=torch.int32) // size
        if act_order:
            groups = groups[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
        scales, zero_points = nearest(linear.weight.float(), bits, groups, symmetric)
        # it has a bias everywhere, as AutoGPTQ gives its modules when it loads a model
        packed = quant_linear(bits, group_size, inputs, outputs, bias=True)
        packed.pack(linear.float(), scales, zero_points, groups)
        tensors = {name: getattr(packed, name) for name in TENSORS}
        tensors["scales"] = tensors["scales"].half()
        bias = linear.bias if linear.bias is not None else torch.zeros(outputs)
        packed.bias = torch.zeros(outputs)
        packed.autogptq_cuda_available = False
        return tensors | {"bias": bias.detach().half()}, packed(torch.eye(inputs)).T.contiguous()

    return pack


def autoawq(group_size: int) -> Callable[[torch.nn.Linear], Packed]:
    """AutoAWQ's packing of a linear layer."""
    quant_linear = module_of("awq.modules.linear.gemm").WQLinear_GEMM
    dequantize = module_of("awq.utils.packing_utils").dequantize_gemm

    def pack(linear: torch.nn.Linear) -> Packed:
        groups = torch.arange(linear.in_features, dtype=torch.int32) // group_size
        scales, zero_points = nearest(linear.weight.float(), 4, groups, symmetric=False)
        packed = quant_linear.from_linear(
            linear.float(), 4, group_size, scales=scales.T.contiguous(), zeros=zero_points.T.contiguous()
        )
        tensors = {name: getattr(packed, name) for name in TENSORS if name != "g_idx"}
        weight = dequantize(packed.qweight, packed.qzeros, packed.scales.float(), 4, group_size)
        if linear.bias is not None:
            tensors["bias"] = packed.bias
        return tensors, weight.T.contiguous()

    return pack


def module_by_module(
    name: str, section: dict[str, object], pack: Callable[[torch.nn.Linear], Packed]
) -> None:
    """Pack every linear layer of a tiny model, the head only if the configuration says so."""
    model = tiny_model()
    tensors: Tensors = {key: value.clone() for key, value in model.state_dict().items()}
    dequantized: Tensors = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (path != "lm_head" or section.get("lm_head")):
            del tensors[f"{path}.weight"]
            packed, dequantized[f"{path}.weight"] = pack(module)
            tensors |= {f"{path}.{key}": value.contiguous() for key, value in packed.items()}
    config = json.loads(model.config.to_json_string()) | {"quantization_config": section}
    write(name, config, tensors, dequantized)


def write(name: str, config: dict[str, Any], tensors: Tensors, dequantized: Tensors) -> None:
    """Write one checkpoint; ``config.json`` in the spelling of Qwen2's published ones."""
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    rope = config.pop("rope_parameters", {})
    config["rope_theta"] = rope.get("rope_theta", 10000.0)
    config["torch_dtype"] = config.pop("dtype", "float16")
    for field in ("layer_types", "pad_token_id", "eos_token"):
        config.pop(field, None)
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (HERE / "dequantized").mkdir(exist_ok=True)
    save_file(dequantized, HERE / "dequantized" / f"{name}.safetensors")


def write_tokenizer(folder: Path) -> None:
    """One token per byte, which GPTQModel wants to see."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )


def gptq_section(bits: int, group_size: int, *, desc_act: bool, sym: bool) -> dict[str, object]:
    """``quantization_config`` as AutoGPTQ 0.7.1 writes it, and Qwen publishes it."""
    return {
        "bits": bits,
        "checkpoint_format": "gptq",
        "damp_percent": 0.01,
        "desc_act": desc_act,
        "group_size": group_size,
        "model_file_base_name": "model",
        "model_name_or_path": None,
        "quant_method": "gptq",
        "static_groups": False,
        "sym": sym,
        "true_sequential": True,
    }


AWQ_SECTION: dict[str, object] = {
    "bits": 4,
    "group_size": 32,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}

RECIPES: dict[str, Callable[[str], None]] = {
    "autogptq-int4": lambda name: module_by_module(
        name, gptq_section(4, 64, desc_act=False, sym=True), autogptq(4, 64, act_order=False, symmetric=True)
    ),
    "autogptq-int8": lambda name: module_by_module(
        name,
        gptq_section(8, -1, desc_act=False, sym=False) | {"lm_head": True},
        autogptq(8, -1, act_order=False, symmetric=False),
    ),
    "autogptq-int8-act-order": lambda name: module_by_module(
        name, gptq_section(8, 32, desc_act=True, sym=True), autogptq(8, 32, act_order=True, symmetric=True)
    ),
    "autoawq": lambda name: module_by_module(name, AWQ_SECTION, autoawq(32)),
    "gptqmodel-act-order": lambda name: with_gptqmodel(
        name, tiny_model(), bits=4, group_size=32, desc_act=True, sym=False
    ),
    "gptqmodel-v2": lambda name: with_gptqmodel(
        name, tiny_model(), bits=4, group_size=32, desc_act=False, sym=False, format="gptq_v2"
    ),
    "gptqmodel-moe": lambda name: with_gptqmodel(
        name, tiny_model(moe=True), bits=4, group_size=32, desc_act=False, sym=True
    ),
    "gptqmodel-awq": lambda name: with_gptqmodel(
        name,
        tiny_model(num_key_value_heads=2, intermediate_size=128),  # it wants rows in sixty-fours
        bits=4,
        group_size=64,
        sym=False,
        method="awq",
        format="gemm",
    ),
}

if __name__ == "__main__":
    for recipe in sys.argv[1:] or RECIPES:
        RECIPES[recipe](recipe)
