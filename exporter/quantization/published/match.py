"""Which tensors of a published checkpoint hold which weight; nothing may be missing or left over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.folder import Checkpoint, TensorRef
from q2export.exporter.checkpoint.listing import listed, listed_names
from q2export.exporter.checkpoint.parameters import EMBEDDING, LM_HEAD, check_tied_head, expected_parameters
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES
from q2export.exporter.checkpoint.selection import is_quantizable
from q2export.exporter.quantization.published.packing import Packing, packing_of
from q2export.strict.json import shown

_WEIGHT = ".weight"


@dataclass(frozen=True)
class PublishedWeight:
    """The tensors of one quantized weight.

    Attributes:
        name: Hugging Face name of the weight.
        shape: of the weight, ``(out, in)``.
        groups: ranges of inputs that have a scale of their own.
        qweight, qzeros: int32, see :mod:`~q2export.exporter.quantization.published.packing`.
        scales: F16, BF16 or F32, ``[groups, out]``.
        g_idx: int32 ``[in]``, the group of each input; None where there is none.
    """

    name: str
    shape: tuple[int, int]
    groups: int
    qweight: TensorRef
    qzeros: TensorRef
    scales: TensorRef
    g_idx: TensorRef | None


@dataclass(frozen=True)
class MatchedTensors:
    """The tensors of a published checkpoint by what they are.

    Attributes:
        quantized: the quantized weights by name, in model order.
        plain: the parameters in floating point by name, in model order.
        zeros: biases of layers that have none, which GPTQ writes nevertheless; they have to be zero.
    """

    quantized: Mapping[str, PublishedWeight]
    plain: Mapping[str, TensorRef]
    zeros: tuple[TensorRef, ...]


def match_tensors(
    checkpoint: Checkpoint, config: ModelConfig, quantization: PublishedQuantization
) -> MatchedTensors:
    """Find the tensors of every parameter, from headers alone.

    Any linear layer may be in floating point: published models differ in what they leave out, and a weight
    that is there as a whole is what its name says.

    Raises:
        CheckpointError: tensors are missing, left over or of the wrong type or shape; names the first few.
    """
    expected = expected_parameters(config)
    matching = _Matching(checkpoint, quantization, expected)
    for name, shape in expected.items():
        matching.find(name, shape)
    if config.tie_word_embeddings and EMBEDDING in matching.plain and matching.take(LM_HEAD):
        check_tied_head(checkpoint)
    matching.finish(config)
    return MatchedTensors(matching.quantized, matching.plain, tuple(matching.zeros))


class _Matching:
    """What was found so far, and what was wrong with it."""

    def __init__(
        self, checkpoint: Checkpoint, quantization: PublishedQuantization, expected: Collection[str]
    ) -> None:
        self._checkpoint, self._quantization, self._expected = checkpoint, quantization, expected
        self._packing = packing_of(quantization)
        self._unused = dict.fromkeys(checkpoint.tensors)  # in the order of the files
        self._missing: list[str] = []
        self._wrong: list[str] = []
        self.quantized: dict[str, PublishedWeight] = {}
        self.plain: dict[str, TensorRef] = {}
        self.zeros: list[TensorRef] = []

    def take(self, name: str) -> bool:
        """Mark a tensor as used; False if there is none."""
        return name in self._unused and self._unused.pop(name) is None

    def find(self, name: str, shape: tuple[int, ...]) -> None:
        """Find one parameter in either form."""
        module = name.removesuffix(_WEIGHT)
        if f"{module}.qweight" in self._unused and name not in self._unused:
            self._find_quantized(name, module, (shape[0], shape[1]))
        else:
            ref = self._tensor(name, FLOAT_DTYPES, shape)
            if ref is not None:
                self.plain[name] = ref

    def _find_quantized(self, name: str, module: str, shape: tuple[int, int]) -> None:
        refused = _why_not_quantized(name, shape, self._packing, self._quantization)
        if refused:
            raise CheckpointError(f"{self._checkpoint.tensors[f'{module}.qweight'].file}: {refused}")
        outputs, inputs = shape
        groups = -(-inputs // (self._quantization.group_size or inputs))
        qweight = self._tensor(f"{module}.qweight", ("I32",), self._packing.qweight_shape(shape))
        qzeros = self._tensor(f"{module}.qzeros", ("I32",), self._packing.qzeros_shape(outputs, groups))
        scales = self._tensor(f"{module}.scales", FLOAT_DTYPES, (groups, outputs))
        g_idx = None
        if self._quantization.method == "gptq":
            # without act-order the groups follow each other, and some writers leave it out
            if f"{module}.g_idx" in self._unused or self._quantization.act_order is not False:
                g_idx = self._tensor(f"{module}.g_idx", ("I32",), (inputs,))
            self._find_zeros(module, outputs)
        if qweight and qzeros and scales:
            self.quantized[name] = PublishedWeight(name, shape, groups, qweight, qzeros, scales, g_idx)

    def _find_zeros(self, module: str, outputs: int) -> None:
        """A bias the model does not have; whether it is zero is seen when values are read."""
        bias = f"{module}.bias"
        if bias in self._unused and bias not in self._expected:
            ref = self._tensor(bias, FLOAT_DTYPES, (outputs,))
            if ref is not None:
                self.zeros.append(ref)

    def _tensor(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> TensorRef | None:
        if not self.take(name):
            self._missing.append(name)
            return None
        ref = self._checkpoint.tensors[name]
        if ref.dtype in dtypes and ref.shape == shape:
            return ref
        self._wrong.append(
            f"{shown(name)} is {ref.dtype} {list(ref.shape)}, expected {' or '.join(dtypes)} {list(shape)} "
            f"({ref.file.name})"
        )
        return None

    def finish(self, config: ModelConfig) -> None:
        """Raise if anything was wrong."""
        problems = []
        for what, names in (("missing", self._missing), ("surplus", list(self._unused))):
            if names:
                problems.append(f"{len(names)} {what}: {listed_names(names)}")
        if self._wrong:
            problems.append(f"{len(self._wrong)} of the wrong type or shape: {listed(self._wrong)}")
        if not problems and not self.quantized:
            problems.append("no weight is quantized, so there should be no quantization_config")
        if problems:
            quantization = self._quantization
            raise CheckpointError(
                f"{self._checkpoint.folder}: the tensors are not those config.json calls for "
                f"({config.model_type}, {config.num_hidden_layers} layers, {quantization.method} with "
                f"{quantization.bits} bits): {'; '.join(problems)}; "
                "correct config.json or get the weights again"
            )


def _why_not_quantized(
    name: str, shape: tuple[int, int], packing: Packing, quantization: PublishedQuantization
) -> str | None:
    """Why a weight cannot be a quantized one; None if it can."""
    if name == EMBEDDING:
        return f"{name!r} is quantized, which is not read; use a version with an embedding in floating point"
    if not is_quantizable(name, embedding=True):
        return f"{name!r} is quantized, routers are expected in floating point; use a version with such"
    if not packing.fits(shape):
        return (
            f"{name!r} {list(shape)} does not fill whole 32-bit words of {quantization.bits}-bit codes; "
            "padded words are not read"
        )
    return None
