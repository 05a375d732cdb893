"""The exporter's modules as a decoder under PyTorch: caches updated in place, decode steps as one CUDA graph.

What the kernels are worth in a whole model, and whether they compute it, shows here without TensorRT. The
attention is ``torch.ops.q2export.rotary_attention_``, which ``q2export.plugins.tensorrt.torch_ops.register``
defines; everything else is the modules that are traced, with the weights of q/k/v and of gate/up joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from q2export.contracts.dtypes import BY_NAME
from q2export.errors import ExportError
from q2export.exporter.checkpoint.folder import TensorRef, read_blocks
from q2export.exporter.checkpoint.parameters import LM_HEAD
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.checkpoint.values import convert_block
from q2export.exporter.export import Source
from q2export.exporter.graph.model.attention import SelfAttention
from q2export.exporter.graph.model.decoder import DecoderLayer, Embedding, Head
from q2export.exporter.graph.model.mlp import MLP
from q2export.exporter.graph.model.moe import SparseMoeBlock

Module = TypeVar("Module", bound=nn.Module)


def read_tensor(ref: TensorRef, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read one tensor of a checkpoint, converted to ``dtype``, onto a device."""
    name, integer = BY_NAME[str(dtype).removeprefix("torch.")].safetensors, np.dtype(f"<i{dtype.itemsize}")
    bits = np.empty(ref.shape, dtype=integer)
    flat = bits.reshape(-1)
    for start, raw in read_blocks(ref):
        flat[start : start + raw.size] = convert_block(raw, ref.dtype, name).view(integer)
    return torch.from_numpy(bits).view(dtype).to(device)


class InPlaceAttention(nn.Module):
    """:class:`SelfAttention` with joined projections, rotating, appending and attending in one op."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.weight = torch.cat([part.weight for part in parts])
        self.bias = torch.cat([part.bias for part in parts]) if attention.q_proj.bias is not None else None
        self.sizes = [part.out_features for part in parts]
        self.o_proj = attention.o_proj
        self.head_dim = attention.head_dim
        self.attention_factor = attention.rotary_q.attention_factor
        self.cached = attention.attention

    def forward(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        inv_freq: Tensor,
        past: tuple[Tensor, Tensor],
        lengths: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`SelfAttention.forward`; the caches returned are those given."""
        batch, sequence = position_ids.shape
        query, key, value = (
            part.reshape(batch, sequence, -1, self.head_dim)
            for part in functional.linear(hidden, self.weight, self.bias).split(self.sizes, dim=-1)
        )
        output = torch.ops.q2export.rotary_attention_(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            *past,
            *lengths,
            inv_freq,
            self.cached.num_heads,
            self.cached.num_kv_heads,
            self.cached.scale,
            self.cached.sliding_window,
            self.attention_factor,
        )
        return self.o_proj(output.view(hidden.shape[0], -1)), *past


class FusedMLP(nn.Module):
    """:class:`MLP` with gate and up as one product."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.weight = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
        self.down_proj = mlp.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        """See :meth:`MLP.forward`."""
        gate, up = functional.linear(hidden, self.weight).chunk(2, dim=-1)
        result: Tensor = self.down_proj(functional.silu(gate) * up)
        return result


class TorchDecoder:
    """A checkpoint on one device, for greedy generation.

    Args:
        source: the checkpoint.
        dtype: of weights, activations and caches.
        device: where to run; a GPU whose kernels are registered.
        batch: rows.
        capacity: tokens a row's cache holds.

    Raises:
        ExportError: the in-place attention is not registered with PyTorch.
    """

    def __init__(
        self, source: Source, *, dtype: torch.dtype, device: torch.device, batch: int, capacity: int
    ) -> None:
        if not hasattr(torch.ops.q2export, "rotary_attention_"):
            raise ExportError(
                "call q2export.plugins.tensorrt.torch_ops.register() before making a TorchDecoder"
            )
        self._source, self._dtype, self._device = source, dtype, device
        config = source.config
        inv_freq, factor = inverse_frequencies(config.rope, config.head_dim)
        self._inv_freq = torch.from_numpy(inv_freq).to(device)
        with torch.device("meta"):
            embedding, head = Embedding(config), Head(config)
        self._embedding = self._filled(embedding, "model.")
        self._layers = [self._layer(index, factor) for index in range(config.num_hidden_layers)]
        self._head = self._filled(head, "")
        cache = (batch, config.num_key_value_heads, capacity, config.head_dim)
        self._caches = [
            tuple(torch.zeros(2, *cache, dtype=dtype, device=device).unbind()) for _ in self._layers
        ]
        self.capacity = capacity
        self.past_lengths = torch.zeros(batch, dtype=torch.int64, device=device)

    def _filled(self, module: Module, prefix: str) -> Module:
        """Give a module on meta the weights of the checkpoint; a tied head takes the embedding's."""
        weights = {}
        for name, _ in module.named_parameters():
            full = prefix + name
            if full == LM_HEAD and self._source.config.tie_word_embeddings:
                weights[name] = self._embedding.embed_tokens.weight
            else:
                weights[name] = read_tensor(self._source.checkpoint.tensors[full], self._dtype, self._device)
        module.load_state_dict(weights, assign=True)
        return module.eval().requires_grad_(False)

    def _layer(self, index: int, factor: float) -> nn.Module:
        with torch.device("meta"):
            empty = DecoderLayer(self._source.config, index, factor)
        layer = self._filled(empty, f"model.layers.{index}.")
        attention, mlp = layer.self_attn, layer.mlp
        layer.add_module("self_attn", InPlaceAttention(attention))
        if isinstance(mlp, MLP):
            layer.mlp = FusedMLP(mlp)
        elif isinstance(mlp, SparseMoeBlock):
            mlp.add_module("shared_expert", FusedMLP(mlp.shared_expert))
        return layer

    @torch.no_grad()
    def step(self, input_ids: Tensor, query_lengths: Tensor, logits_indices: Tensor) -> Tensor:
        """Append the tokens to the caches and return logits.

        Args:
            input_ids: int64 ``[batch, sequence]``, right-padded.
            query_lengths: int64 ``[batch]``.
            logits_indices: int64 ``[batch, n]``.

        Returns:
            float32 ``[batch, n, vocab_size]``. ``past_lengths`` is advanced.
        """
        hidden, position_ids = self._embedding(input_ids, self.past_lengths)
        for layer, cache in zip(self._layers, self._caches, strict=True):
            hidden = layer(hidden, position_ids, self._inv_freq, *cache, self.past_lengths, query_lengths)[0]
        logits: Tensor = self._head(hidden, logits_indices)
        self.past_lengths += query_lengths
        return logits

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Generate greedily, from empty caches, without stopping at any token.

        Raises:
            ExportError: another number of prompts than rows, an empty prompt, or more tokens than the
                capacity.
        """
        lengths = [len(prompt) for prompt in prompts]
        if len(prompts) != len(self.past_lengths) or min(lengths) == 0:
            raise ExportError(
                f"expected {len(self.past_lengths)} prompts of at least one token, found {lengths}"
            )
        if max(lengths) + max_new_tokens > self.capacity:
            raise ExportError(
                f"{max(lengths)} + {max_new_tokens} tokens exceed the capacity of {self.capacity}"
            )
        self.past_lengths.zero_()
        padded = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
        query_lengths = torch.tensor(lengths, device=self._device)
        logits = self.step(
            torch.tensor(padded, device=self._device), query_lengths, query_lengths[:, None] - 1
        )
        decode = DecodeStep(self, logits[:, 0].argmax(-1))
        tokens = [decode.token.clone()]
        for _ in range(max_new_tokens - 1):
            decode()
            tokens.append(decode.token.clone())
        return torch.stack(tokens, dim=1).tolist()


class DecodeStep:
    """One greedy token for every row, each the input of the next; a CUDA graph on a GPU.

    Attributes:
        token: int64 ``[batch]``, the newest token of every row; always the same memory.
    """

    def __init__(self, decoder: TorchDecoder, token: Tensor) -> None:
        self.token = token.clone()
        self._decoder = decoder
        self._one = torch.ones_like(token)
        self._zero = torch.zeros_like(token)[:, None]
        self._graph = self._captured() if token.is_cuda else None

    def __call__(self) -> None:
        """Append ``token`` to the caches and replace it by the next one."""
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()

    def _run(self) -> None:
        logits = self._decoder.step(self.token[:, None], self._one, self._zero)
        self.token.copy_(logits[:, 0].argmax(-1))

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph; the run that warms it up is undone by putting back lengths and token."""
        lengths, token = self._decoder.past_lengths.clone(), self.token.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        self._decoder.past_lengths.copy_(lengths)
        self.token.copy_(token)
        return graph
