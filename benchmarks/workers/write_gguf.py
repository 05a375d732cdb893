"""Write a dense Qwen2 checkpoint as a GGUF file; needs gguf and llama-cpp-python.

``python -m benchmarks.workers.write_gguf CHECKPOINT OUTPUT {bf16,q8_0,q4_0}``. Every matrix is of that
type (``pure``), also the tied embedding and head, which ``llama-quantize`` would keep in six bits for q4_0:
smaller and faster, as the others have it.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]  # of the peers' interpreter
import llama_cpp  # type: ignore[import-not-found]
import numpy as np
import numpy.typing as npt

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def main(checkpoint: Path, output: Path, kind: str) -> None:
    """Write the file in float32, then let llama.cpp convert it; to bf16 the values stay the checkpoint's.

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    plain = output.with_name(f"{output.name}.f32")
    _write_float32(checkpoint, plain)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    parameters.pure = True
    status = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(output).encode(), ctypes.byref(parameters)
    )
    plain.unlink()
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}")


def _write_float32(checkpoint: Path, path: Path) -> None:
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    for name, array in _tensors(checkpoint / "model.safetensors"):
        writer.add_tensor(_gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def _tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """The bfloat16 tensors of a safetensors file, widened."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
        if name == "__metadata__":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        wide = data[start:end].view(np.uint16).astype(np.uint32) << 16
        yield name, wide.view(np.float32).reshape(entry["shape"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
