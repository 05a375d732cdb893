"""The PyTorch reference of a checkpoint, in float32, with its weights streamed layer by layer.

The modules are those the exporter traces, run eagerly over the CPU references of the custom ops; the weights
are read from the checkpoint itself, not from the package, so that a fault of conversion or placement shows.
Only one layer is in memory at a time, in float32, and the vocabulary projection is done in slices.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from q2export.exporter.checkpoint import TensorRef, read_blocks
from q2export.exporter.export import Source
from q2export.exporter.model.decoder import DecoderLayer
from q2export.exporter.rope import inverse_frequencies
from q2export.exporter.values import convert_block

Float32Array = npt.NDArray[np.float32]
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass
class Run:
    """Result of one pass; the shape of ``q2export.runtime.verify.contracts.ReferenceRun``.

    Attributes:
        logits: per sequence, float32 ``[tokens, vocab_size]``.
        captures: per asked point (module path), per sequence, float32 ``[tokens, width]``.
    """

    logits: list[Float32Array]
    captures: dict[str, list[Float32Array]] = field(default_factory=dict)


class CheckpointReference:
    """Runs a checkpoint, teacher-forced."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._config = source.config
        self._tensors = source.checkpoint.tensors

    @torch.no_grad()
    def run(self, sequences: Sequence[Sequence[int]], capture: Collection[str] = ()) -> Run:
        """Run all sequences in one pass over the weights.

        Args:
            sequences: token ids, each at least one.
            capture: module paths whose outputs are wanted, such as ``model.layers.3.self_attn.q_proj``.
        """
        config = self._config
        run = Run([])
        inv_freq_array, attention_factor = inverse_frequencies(config.rope, config.head_dim)
        inv_freq = torch.from_numpy(inv_freq_array)
        hidden = [self._embed(sequence) for sequence in sequences]
        self._keep(run, capture, "model.embed_tokens", hidden)
        for layer in range(config.num_hidden_layers):
            path = f"model.layers.{layer}"
            with torch.device("meta"):
                module = DecoderLayer(config, layer, attention_factor).eval()
            self._load(module, path)
            hooks = [
                self._hook(run, child, f"{path}.{name}", capture)
                for name, child in module.named_modules()
                if name
            ]
            hidden = [self._layer(module, one, inv_freq) for one in hidden]
            for hook in hooks:
                hook.remove()
            self._keep(run, capture, path, hidden)
        norm = self._read(self._tensors[_NORM])
        hidden = [functional.rms_norm(one[0], norm.shape, norm, config.rms_norm_eps) for one in hidden]
        self._keep(run, capture, "model.norm", hidden)
        run.logits = self._head(hidden)
        self._keep(run, capture, "lm_head", [torch.from_numpy(one) for one in run.logits])
        return run

    def _embed(self, sequence: Sequence[int]) -> Tensor:
        """Rows of the embedding, ``[1, tokens, hidden_size]``; only these rows are read."""
        ref = self._tensors[_EMBEDDING]
        row_bytes = ref.nbytes // ref.shape[0]
        rows = {
            token: self._read(TensorRef(ref.name, ref.dtype, ref.shape[1:], ref.file, ref.offset + token *
                row_bytes, row_bytes)) for token in set(sequence)
        }  # fmt: skip
        return torch.stack([rows[token] for token in sequence])[None]

    def _layer(self, module: nn.Module, hidden: Tensor, inv_freq: Tensor) -> Tensor:
        tokens = hidden.shape[1]
        config = self._config
        cache = torch.zeros(1, config.num_key_value_heads, tokens, config.head_dim)
        past, query = torch.tensor([0]), torch.tensor([tokens])
        output: Tensor = module(hidden, torch.arange(tokens)[None], inv_freq, cache, cache, past, query)[0]
        return output

    def _head(self, hidden: list[Tensor]) -> list[Float32Array]:
        """Logits in slices of the vocabulary, so that the matrix is never whole in memory."""
        ref = self._tensors[_EMBEDDING if self._config.tie_word_embeddings else _HEAD]
        vocab, width = ref.shape
        logits = [np.empty((len(one), vocab), dtype=np.float32) for one in hidden]
        carried = np.empty(0, dtype=np.float32)
        first = 0
        for _, raw in read_blocks(ref):
            values = np.concatenate((carried, convert_block(raw, ref.dtype, "F32").view(np.float32)))
            rows = values.size // width
            weight = torch.from_numpy(values[: rows * width].reshape(rows, width))
            for out, one in zip(logits, hidden, strict=True):
                out[:, first : first + rows] = functional.linear(one, weight).numpy()
            carried = values[rows * width :]
            first += rows
        return logits

    def _load(self, module: nn.Module, path: str) -> None:
        weights = {name: self._read(self._tensors[f"{path}.{name}"]) for name, _ in module.named_parameters()}
        module.load_state_dict(weights, assign=True)

    def _read(self, ref: TensorRef) -> Tensor:
        """One tensor in float32."""
        values = np.empty(ref.shape, dtype=np.float32)
        flat = values.reshape(-1)
        for start, raw in read_blocks(ref):
            flat[start : start + raw.size] = convert_block(raw, ref.dtype, "F32").view(np.float32)
        return torch.from_numpy(values)

    @staticmethod
    def _keep(run: Run, capture: Collection[str], name: str, tensors: Sequence[Tensor]) -> None:
        if name in capture:
            run.captures[name] = [_matrix(tensor) for tensor in tensors]

    @staticmethod
    def _hook(
        run: Run, module: nn.Module, name: str, capture: Collection[str]
    ) -> torch.utils.hooks.RemovableHandle:
        def store(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            if name in capture:
                first = output if isinstance(output, Tensor) else output[0]
                run.captures.setdefault(name, []).append(_matrix(first))

        return module.register_forward_hook(store)


def _matrix(tensor: Tensor) -> Float32Array:
    """``[tokens, width]`` of a captured tensor, whatever axes its width has (heads, head_dim)."""
    if tensor.dim() > 2:
        tensor = tensor.reshape(tensor.shape[1], -1) if tensor.shape[0] == 1 else tensor.flatten(1)
    array: Float32Array = tensor.numpy().copy()
    return array
