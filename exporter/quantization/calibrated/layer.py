"""What the weights of one decoder layer read on the calibration text, with all before them quantized."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.graph.model.decoder import DecoderLayer
from q2export.exporter.graph.model.mlp import MLP
from q2export.exporter.graph.ops.moe import route

_EXPERT = re.compile(r"mlp\.experts\.(\d+)")
_READ_BY_ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkv")


class LayerInputs:
    """One decoder layer on the calibration text.

    Its weights are filled in as they are quantized, in model order; what one of them reads is computed from
    those before it when it is asked for.

    Attributes:
        module: the layer, its parameters in float32.
    """

    def __init__(
        self, module: DecoderLayer, config: ModelConfig, inv_freq: Tensor, hidden: Sequence[Tensor]
    ) -> None:
        """``hidden``: what the layer reads, in batches ``[sequences, tokens, hidden_size]``."""
        self.module = module
        self._config = config
        self._inv_freq = inv_freq
        self._hidden = hidden
        self._shapes = [one.shape for one in hidden]

    def of(self, name: str) -> tuple[str, Iterator[Tensor]]:
        """What a weight reads; its name is that in the layer, such as ``self_attn.q_proj.weight``.

        Returns:
            a name for it, the same for weights that read the same, and its parts, float32 ``[tokens, in]``.
        """
        path = name.removesuffix(".weight")
        if path in _READ_BY_ATTENTION:
            return "self_attn", (self._normed(one) for one in self._hidden)
        if path == "self_attn.o_proj":
            return path, iter(self._attended)
        parent = path.rpartition(".")[0]
        key, inputs = "mlp", self._mlp_inputs()
        if expert := _EXPERT.fullmatch(parent):
            key, inputs = parent, self._expert_inputs(int(expert[1]))
        if not path.endswith("down_proj"):
            return key, inputs
        mlp = self.module.get_submodule(parent)
        return path, (_activated(mlp, one) for one in inputs)

    def outputs(self) -> list[Tensor]:
        """What the layer gives, in the batches of its input."""
        batches = zip(self._residual, self._mlp_inputs(), self._shapes, strict=True)
        return [(residual + self.module.mlp(read)).view(shape) for residual, read, shape in batches]

    def _expert_inputs(self, expert: int) -> Iterator[Tensor]:
        """What gate and up of an expert read: the tokens that the router sends there."""
        hidden, chosen = self._routed
        yield hidden[(chosen == expert).any(dim=1)]

    def _normed(self, hidden: Tensor) -> Tensor:
        """What the attention reads, ``[tokens, hidden_size]``."""
        normed: Tensor = self.module.input_layernorm(hidden.view(-1, self._config.hidden_size))
        return normed

    def _mlp_inputs(self) -> Iterator[Tensor]:
        return (self.module.post_attention_layernorm(one) for one in self._residual)

    @cached_property
    def _attended(self) -> list[Tensor]:
        """What ``o_proj`` reads, ``[tokens, heads * head_dim]`` per batch."""
        attention, found = self.module.self_attn, list[Tensor]()
        hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        config = self._config
        for one in self._hidden:
            batch, tokens, _ = one.shape
            cache = torch.zeros(batch, config.num_key_value_heads, tokens, config.head_dim)
            positions = torch.arange(tokens).expand(batch, tokens)
            lengths = torch.zeros(batch, dtype=torch.int64), torch.full((batch,), tokens)
            attention(self._normed(one), positions, self._inv_freq, (cache, cache), lengths)
        hook.remove()
        return found

    @cached_property
    def _residual(self) -> list[Tensor]:
        """What the MLP's result is added to, ``[tokens, hidden_size]`` per batch; the attention is done."""
        o_proj, size = self.module.self_attn.o_proj, self._config.hidden_size
        batches = zip(self._hidden, self._attended, strict=True)
        result = [one.view(-1, size) + o_proj(read) for one, read in batches]
        self._hidden = ()
        del self._attended
        return result

    @cached_property
    def _routed(self) -> tuple[Tensor, Tensor]:
        """What the MLP reads, ``[all tokens, hidden_size]``, and where it goes, ``[all tokens, top_k]``."""
        moe = self._config.moe
        assert moe is not None  # there are experts
        hidden = torch.cat(list(self._mlp_inputs()))
        logits = self.module.get_submodule("mlp.gate")(hidden)
        return hidden, route(logits, moe.num_experts_per_tok, moe.norm_topk_prob)[1]


def _activated(mlp: nn.Module, read: Tensor) -> Tensor:
    """What ``down_proj`` reads."""
    assert isinstance(mlp, MLP)
    activated: Tensor = functional.silu(mlp.gate_proj(read)) * mlp.up_proj(read)
    return activated
