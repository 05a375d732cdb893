"""The sparse mixture-of-experts block of Qwen2-MoE with its shared expert."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from q2export.exporter.checkpoint.config import MoeConfig
from q2export.exporter.graph.model.mlp import MLP
from q2export.exporter.graph.ops.moe import moe


class Experts(nn.ModuleList):
    """The routed experts; their parameters are ``experts.N.gate_proj.weight`` and so on."""

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__(MLP(hidden_size, config.moe_intermediate_size) for _ in range(config.num_experts))
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob

    def forward(self, hidden: Tensor, router_logits: Tensor) -> Tensor:
        """Dispatch ``hidden [tokens, hidden_size]`` by ``router_logits [tokens, num_experts]``."""
        experts = [expert for expert in self if isinstance(expert, MLP)]
        output: Tensor = moe(
            hidden,
            router_logits,
            [expert.gate_proj.weight for expert in experts],
            [expert.up_proj.weight for expert in experts],
            [expert.down_proj.weight for expert in experts],
            len(experts),
            self.top_k,
            int(self.norm_topk_prob),
        )
        return output


class SparseMoeBlock(nn.Module):
    """Router, routed experts and sigmoid-gated shared expert (transformers ``Qwen2MoeSparseMoeBlock``)."""

    def __init__(self, hidden_size: int, config: MoeConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, config.num_experts, bias=False)
        self.experts = Experts(hidden_size, config)
        self.shared_expert = MLP(hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(hidden_size, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``[tokens, hidden_size]`` to the same shape."""
        routed = self.experts(hidden, self.gate(hidden))
        shared = torch.sigmoid(self.shared_expert_gate(hidden)) * self.shared_expert(hidden)
        combined: Tensor = routed + shared
        return combined
