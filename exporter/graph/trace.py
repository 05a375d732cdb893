"""Tracing the decoder's parts with torch.export on meta tensors: no weight is ever loaded to trace.

A decoder repeats a few kinds of layer (dense or sparse, with or without a window). One of each kind is
traced, with the embedding and the head, and the emitter stamps the layers out; tracing 80 layers would give
the same graph and take ten times as long. ``tests/exporter/graph/test_emit.py`` holds the stamped graph
against the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, export

from q2export.contracts import step
from q2export.contracts.progress import progress_bar
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.graph.model.decoder import DecoderLayer, Embedding, Head

LayerKind = tuple[bool, int]
"""What distinguishes the graphs of two layers: (is it sparse, its sliding window or 0)."""


@dataclass(frozen=True)
class TracedDecoder:
    """The traced parts of one model.

    Attributes:
        embedding: ``(input_ids, past_lengths) -> (hidden, position_ids)``.
        layers: one program per kind of layer.
        head: ``(hidden, logits_indices) -> logits``.
    """

    embedding: ExportedProgram
    layers: dict[LayerKind, ExportedProgram]
    head: ExportedProgram


def layer_kind(config: ModelConfig, layer: int) -> LayerKind:
    """Return the kind of one layer."""
    return config.is_moe_layer(layer), config.window(layer) or 0


def _export(
    module: nn.Module, args: tuple[torch.Tensor, ...], dims: tuple[dict[int, Dim], ...]
) -> ExportedProgram:
    with torch.no_grad():
        return export(module.eval(), args, dynamic_shapes=dims, strict=False)


def trace(config: ModelConfig, dtype: str) -> TracedDecoder:
    """Trace the parts of ``config`` with parameters and activations of ``dtype``, such as ``bfloat16``.

    The last few are kept, not to be changed: one model is often built for several targets and quantizations,
    which its trace knows nothing of.
    """
    return _trace(replace(config, quantization=None, warnings=()), dtype)


@lru_cache(maxsize=16)
def _trace(config: ModelConfig, dtype: str) -> TracedDecoder:
    float_type: torch.dtype = getattr(torch, dtype)
    _, attention_factor = inverse_frequencies(config.rope, config.head_dim)
    dims = {name: Dim(name) for name in step.DYNAMIC}

    def dynamic(tensor: step.StepTensor) -> dict[int, Dim]:
        return {axis: dims[str(size)] for axis, size in enumerate(tensor.shape) if size in dims}

    tokens, lengths = dynamic(step.INPUT_IDS), dynamic(step.PAST_LENGTHS)
    # Example sizes are distinct and above one, so that no dimension is taken for another or for a constant.
    b, s, c, n = 2, 3, 7, 5
    with torch.device("meta"):
        ids = torch.zeros(b, s, dtype=torch.int64)
        hidden = torch.zeros(b, s, config.hidden_size, dtype=float_type)
        inv_freq = torch.zeros(config.head_dim // 2)
        # One tensor per argument: export gives arguments that are the same object one and the same input.
        past_lengths, query_lengths = torch.zeros(2, b, dtype=torch.int64).unbind()
        past_key, past_value = torch.zeros(
            2, b, config.num_key_value_heads, c, config.head_dim, dtype=float_type
        ).unbind()
        indices = torch.zeros(b, n, dtype=torch.int64)
        embedding = Embedding(config).to(float_type)
        head = Head(config).to(float_type)
        first_of_kind: dict[LayerKind, int] = {}
        for layer in range(config.num_hidden_layers):
            first_of_kind.setdefault(layer_kind(config, layer), layer)
        modules = {
            kind: DecoderLayer(config, layer, attention_factor).to(float_type)
            for kind, layer in first_of_kind.items()
        }
    caches = tuple(dynamic(tensor) for tensor in step.PAST)
    with progress_bar("tracing", len(modules) + 2, "it") as advance:

        def traced(
            module: nn.Module, args: tuple[torch.Tensor, ...], dims: tuple[dict[int, Dim], ...]
        ) -> ExportedProgram:
            program = _export(module, args, dims)
            advance(1)
            return program

        return TracedDecoder(
            embedding=traced(embedding, (ids, past_lengths), (tokens, lengths)),
            layers={
                kind: traced(
                    module,
                    (hidden, ids, inv_freq, past_key, past_value, past_lengths, query_lengths),
                    (tokens, tokens, {}, *caches, lengths, lengths),
                )
                for kind, module in modules.items()
            },
            head=traced(head, (hidden, indices), (tokens, dynamic(step.LOGITS_INDICES))),
        )
