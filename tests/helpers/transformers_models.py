"""transformers as the independent oracle: a checkpoint's model, its logits and its greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, Qwen2ForCausalLM, Qwen2MoeForCausalLM

from q2export.exporter.checkpoint.config import load_config
from tests.helpers.checkpoints import write_checkpoint

Float32Array = npt.NDArray[np.float32]

MODELS = {"qwen2": Qwen2ForCausalLM, "qwen2_moe": Qwen2MoeForCausalLM}


def load_model(folder: Path, dtype: str = "float32") -> PreTrainedModel:
    """Read a checkpoint with transformers, in float32 (of rounded weights, where it is stored in 16 bits)."""
    torch.set_num_threads(1)
    model_class = MODELS[load_config(folder).model_type]
    return model_class.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()


def write_with_transformers(folder: Path, config: dict[str, object], seed: int = 0) -> Path:
    """Write the checkpoint of :func:`write_checkpoint` as transformers itself saves it, config and all."""
    source = write_checkpoint(folder.with_name(f"{folder.name}-source"), config, seed)
    load_model(source).save_pretrained(folder)
    return folder


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Float32Array:
    """Logits after each token of one sequence, without cache or padding: ``[tokens, vocab]``."""
    logits: Float32Array = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()
    return logits


@torch.no_grad()
def reference_greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """``count`` greedy tokens after ``prompt``, and by how many logits the closest choice was made."""
    result = model.generate(
        torch.tensor([list(prompt)]),
        do_sample=False,
        max_new_tokens=count,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best, second = torch.stack(result.logits)[:, 0].topk(2).values.unbind(-1)
    return result.sequences[0, len(prompt) :].tolist(), float((best - second).min())
