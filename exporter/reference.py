"""The PyTorch reference of a checkpoint, in float32, with its weights streamed layer by layer.

The modules are those the exporter traces, run eagerly over the CPU references of the custom ops; the weights
are read from the checkpoint itself, not from the package, so that a fault of conversion or placement shows.
Only one layer is in memory at a time, in float32, and the vocabulary projection is done in slices.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.parameter_values import ParameterValues
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.checkpoint.source import Source
from q2export.exporter.graph.model.decoder import DecoderLayer

Float32Array = npt.NDArray[np.float32]
RouterHook = Callable[[str, int, Float32Array], Float32Array]
"""Takes module path, index of the sequence and router logits ``[tokens, num_experts]``; returns the like."""
_EMBEDDING, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass
class Run:
    """Result of one pass.

    Attributes:
        logits: per sequence, float32 ``[tokens, vocab_size]``.
        captures: per asked point (module path), per sequence, float32 ``[tokens, width]``.
    """

    logits: list[Float32Array]
    captures: dict[str, list[Float32Array]] = field(default_factory=dict)


class ReferenceLayer:
    """One decoder layer with its weights, over sequences without a past."""

    def __init__(self, module: DecoderLayer, config: ModelConfig, inv_freq: Tensor) -> None:
        self.module = module
        self.config = config
        self._inv_freq = inv_freq

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Map ``[1, tokens, hidden_size]`` to the same shape."""
        tokens = hidden.shape[1]
        cache = torch.zeros(1, self.config.num_key_value_heads, tokens, self.config.head_dim)
        positions = torch.arange(tokens)[None]
        lengths = torch.tensor([0]), torch.tensor([tokens])
        output: Tensor = self.module(hidden, positions, self._inv_freq, cache, cache, *lengths)[0]
        return output


class CheckpointReference:
    """Runs a checkpoint, teacher-forced; ``config`` is its own, ``values`` its parameters in float32."""

    def __init__(self, source: Source) -> None:
        self.config = source.config
        self.values = ParameterValues(source.checkpoint, source.packed)
        inv_freq, self._attention_factor = inverse_frequencies(self.config.rope, self.config.head_dim)
        self._inv_freq = torch.from_numpy(inv_freq)

    @torch.no_grad()
    def run(
        self,
        sequences: Sequence[Sequence[int]],
        capture: Collection[str] = (),
        routers: RouterHook | None = None,
    ) -> Run:
        """Run all sequences in one pass over the weights.

        Args:
            sequences: token ids, each at least one.
            capture: module paths whose outputs are wanted, such as ``model.layers.3.self_attn.q_proj``.
            routers: told the logits of every router, and returns those that decide.
        """
        run = Run([])
        hidden = [self.embed(sequence) for sequence in sequences]
        self._keep(run, capture, "model.embed_tokens", hidden)
        for index in range(self.config.num_hidden_layers):
            layer = self.layer(index)
            path = f"model.layers.{index}"
            hooks = [
                self._hook(run, child, f"{path}.{name}", capture)
                for name, child in layer.module.named_modules()
                if name
            ]
            if routers is not None and self.config.is_moe_layer(index):
                hooks.append(_route_by(layer.module.get_submodule("mlp.gate"), f"{path}.mlp.gate", routers))
            hidden = [layer(one) for one in hidden]
            for hook in hooks:
                hook.remove()
            self._keep(run, capture, path, hidden)
        hidden = self.final_norm(hidden)
        self._keep(run, capture, "model.norm", hidden)
        run.logits = self.head(hidden)
        self._keep(run, capture, "lm_head", [torch.from_numpy(one) for one in run.logits])
        return run

    def layer(self, index: int) -> ReferenceLayer:
        """Read one decoder layer."""
        with torch.device("meta"):
            module = DecoderLayer(self.config, index, self._attention_factor).eval()
        self._load(module, f"model.layers.{index}")
        return ReferenceLayer(module, self.config, self._inv_freq)

    def final_norm(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Normalise the last layer's results: ``[1, tokens, hidden_size]`` to ``[tokens, hidden_size]``."""
        norm = self._read(_NORM)
        return [functional.rms_norm(one[0], norm.shape, norm, self.config.rms_norm_eps) for one in hidden]

    def embed(self, sequence: Sequence[int]) -> Tensor:
        """Rows of the embedding, ``[1, tokens, hidden_size]``; only these rows are read."""
        rows = {token: torch.from_numpy(self.values.rows(_EMBEDDING, token, 1)[0]) for token in set(sequence)}
        return torch.stack([rows[token] for token in sequence])[None]

    def head(self, hidden: Sequence[Tensor]) -> list[Float32Array]:
        """Logits ``[tokens, vocab_size]`` of :meth:`final_norm`'s results.

        They are computed in slices of the vocabulary, so that the matrix is never whole in memory.
        """
        name = _EMBEDDING if self.config.tie_word_embeddings else _HEAD
        logits = [np.empty((len(one), self.config.vocab_size), dtype=np.float32) for one in hidden]
        for first, rows in self.values.slices(name):
            weight = torch.from_numpy(rows)
            for out, one in zip(logits, hidden, strict=True):
                out[:, first : first + len(rows)] = functional.linear(one, weight).numpy()
        return logits

    def _load(self, module: nn.Module, path: str) -> None:
        weights = {name: self._read(f"{path}.{name}") for name, _ in module.named_parameters()}
        module.load_state_dict(weights, assign=True)

    def _read(self, name: str) -> Tensor:
        """One parameter in float32."""
        return torch.from_numpy(self.values.read(name))

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


def _route_by(gate: nn.Module, path: str, routers: RouterHook) -> torch.utils.hooks.RemovableHandle:
    """Let ``routers`` decide; the sequences go through the layer one after the other."""
    sequence = itertools.count()

    def decide(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        return torch.from_numpy(routers(path, next(sequence), _matrix(logits))).reshape(logits.shape)

    return gate.register_forward_hook(decide)


def _matrix(tensor: Tensor) -> Float32Array:
    """``[tokens, width]`` of a captured tensor, whatever axes its width has (heads, head_dim)."""
    if tensor.dim() > 2:
        tensor = tensor.reshape(tensor.shape[1], -1) if tensor.shape[0] == 1 else tensor.flatten(1)
    array: Float32Array = tensor.numpy().copy()
    return array
