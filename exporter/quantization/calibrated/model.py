"""What the weights of a model read on calibration text: one layer in memory, each after those before it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.folder import TensorRef
from q2export.exporter.checkpoint.pack import Float32Array
from q2export.exporter.checkpoint.packed import PackedWeight
from q2export.exporter.checkpoint.parameters import EMBEDDING, LM_HEAD
from q2export.exporter.checkpoint.rope import inverse_frequencies
from q2export.exporter.graph.model.decoder import DecoderLayer
from q2export.exporter.quantization.calibrated.layer import LayerInputs
from q2export.exporter.quantization.rows import as_matrix, read_rows

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NORM = "model.norm.weight"
_BATCH_TOKENS = 2048


class ModelInputs:
    """Runs the calibration text through the model while its weights are quantized, in model order.

    Args:
        config: of the model, with padded sizes.
        refs: its tensors on disk.
        quantized: the weights that :meth:`fill` will give; all others are read.
        sequences: token ids, each at least one.
    """

    def __init__(
        self,
        config: ModelConfig,
        refs: Mapping[str, TensorRef],
        quantized: Mapping[str, PackedWeight],
        sequences: Sequence[Sequence[int]],
    ) -> None:
        self._config, self._refs, self._quantized, self._sequences = config, refs, quantized, sequences
        self._batches = list(_batches(sequences))
        inv_freq, self._attention_factor = inverse_frequencies(config.rope, config.head_dim)
        self._inv_freq = torch.from_numpy(inv_freq)
        self._tokens = sorted({token for sequence in sequences for token in sequence})
        self._rows: dict[int, Tensor] = {}  # of the embedding, by token
        self._layer: LayerInputs | None = None
        self._index = -1
        self._final: list[Tensor] | None = None

    def of(self, name: str) -> tuple[str, Iterator[Tensor]] | None:
        """What a weight reads; all quantized weights before it have been filled.

        Returns:
            a name for it, the same for weights that read the same, and its parts, float32 ``[tokens, in]``.
            What a tied embedding reads as the head is that of the model before it is quantized, which takes
            another pass over all weights. None for another embedding, which reads nothing.
        """
        if name == EMBEDDING:
            return (name, self._unquantized()) if self._config.tie_word_embeddings else None
        if name == LM_HEAD:
            return name, iter(self._normed())
        match = _LAYER.fullmatch(name)
        assert match is not None  # the names of parameters are known
        layer = self._at(int(match[1]))
        key, inputs = layer.of(match[2])
        return f"{match[1]} {key}", inputs

    def fill(self, name: str, first_row: int, values: Float32Array) -> None:
        """Take some rows of a quantized weight, dequantized."""
        if name == EMBEDDING:
            last_row = first_row + len(values)
            for token in self._tokens:
                if first_row <= token < last_row:
                    self._rows[token] = torch.from_numpy(values[token - first_row].copy())
        elif (match := _LAYER.fullmatch(name)) is not None:
            parameter = self._at(int(match[1])).module.get_parameter(match[2])
            parameter[first_row : first_row + len(values)] = torch.from_numpy(values)

    def _at(self, index: int) -> LayerInputs:
        """The layer ``index``; those before it are done."""
        while self._layer is None or self._index < index:
            hidden = self._embedded() if self._layer is None else self._layer.outputs()
            self._index += 1
            self._layer = None  # not two at a time
            self._layer = LayerInputs(self._read_layer(self._index), self._config, self._inv_freq, hidden)
        return self._layer

    def _embedded(self) -> list[Tensor]:
        if EMBEDDING not in self._quantized:
            self._rows = {token: self._read(EMBEDDING, token, 1)[0] for token in self._tokens}
        return [
            torch.stack([torch.stack([self._rows[token] for token in sequence]) for sequence in batch])
            for batch in self._batches
        ]

    def _unquantized(self) -> Iterator[Tensor]:
        """What the head reads in the model as it is on disk."""
        yield from ModelInputs(self._config, self._refs, {}, self._sequences)._normed()

    def _normed(self) -> list[Tensor]:
        """What the head reads."""
        if self._final is None:
            hidden = self._at(self._config.num_hidden_layers - 1).outputs()
            norm = self._read(_NORM, 0, 1)[0]
            self._final = [
                functional.rms_norm(one.view(-1, len(norm)), norm.shape, norm, self._config.rms_norm_eps)
                for one in hidden
            ]
        return self._final

    def _read_layer(self, index: int) -> DecoderLayer:
        """A layer whose quantized weights are zeros still."""
        with torch.device("meta"):
            module = DecoderLayer(self._config, index, self._attention_factor).eval().requires_grad_(False)
        parameters = {}
        for name, parameter in module.named_parameters():
            full, shape = f"model.layers.{index}.{name}", tuple(parameter.shape)
            if full in self._quantized:
                parameters[name] = torch.zeros(shape)
            else:
                parameters[name] = self._read(full, 0, as_matrix(shape)[0], shape).view(shape)
        module.load_state_dict(parameters, assign=True)
        return module.requires_grad_(False)

    def _read(self, name: str, first: int, count: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Rows of a tensor that is not quantized; ``shape`` where it is padded."""
        ref = self._refs[name]
        return torch.from_numpy(read_rows(ref, as_matrix(shape or ref.shape), first, count).float32())


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Sequences of one length together, a few thousand tokens at most."""
    for length, same in groupby(sequences, key=len):
        alike, count = list(same), max(1, _BATCH_TOKENS // length)
        yield from (alike[first : first + count] for first in range(0, len(alike), count))
