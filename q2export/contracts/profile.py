"""What an engine is built for, as data; read from files by :mod:`q2export.contracts.profile_loading`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from q2export.contracts.dtypes import FloatDtype
from q2export.contracts.limits import MAX_BATCH, MAX_MIB, MAX_THREADS, MAX_TOKENS
from q2export.contracts.quantization import QualityThresholds, Quantization
from q2export.contracts.ranges import Range, StepRanges
from q2export.errors import ProfileError
from q2export.strict.codec import Source, from_plain, join, to_plain

Target = Literal["onnxruntime", "onnxruntime-cuda", "tensorrt", "portable"]
Device = Literal["cpu", "cuda"]
DtypeChoice = Literal["auto", FloatDtype]
Builder = Literal["auto", "tensorrt", "rtx", "onnxruntime"]
Origin = Literal["default", "profile", "override", "lowered to fit", "follows builder"]

OLDEST_GPU = "8.0"
"""The smallest compute capability of the GPUs that engines are built for."""

_DEVICES: Mapping[Target, Device] = {"tensorrt": "cuda", "onnxruntime-cuda": "cuda", "onnxruntime": "cpu"}
# Keys that mean something to some targets alone.
_ONLY_FOR: tuple[tuple[tuple[Target, ...], tuple[str, ...]], ...] = (
    (("tensorrt", "onnxruntime-cuda"), ("gpu", "compute_capability", "memory_mib", "builder", "max_logits")),
    (("tensorrt",), ("version_compatible", "weight_streaming", "workspace_mib")),
    (("onnxruntime",), ("threads", "quantization.activations")),
)
_CONTRADICTIONS = (
    ("onnxruntime-cuda", "tensorrt"),
    ("onnxruntime-cuda", "rtx"),
    ("tensorrt", "onnxruntime"),
)


@dataclass(frozen=True)
class ParityThresholds:
    """How far the logits of the engine may be from those of the PyTorch reference, over all compared tokens.

    Attributes:
        max_abs_logit_error: largest absolute difference of any logit.
        max_kl_divergence: largest KL(reference || engine) of any token, in nats.
        min_cosine_similarity: smallest cosine similarity of the logits of any token.
        min_top1_agreement: fraction of tokens, 0 to 1, whose largest logit is the same.
    """

    max_abs_logit_error: float
    max_kl_divergence: float
    min_cosine_similarity: float
    min_top1_agreement: float

    def __post_init__(self) -> None:
        for name in ("max_abs_logit_error", "max_kl_divergence"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ProfileError(f"{name} must be finite and not negative, found {value}")
        for name in ("min_cosine_similarity", "min_top1_agreement"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ProfileError(f"{name} must be from 0 to 1, found {value}")


@dataclass(frozen=True)
class Profile:
    """Everything ``build`` needs to know besides the model.

    Attributes:
        name: how the profile is called, ``cpu``.
        target: what runs the engine: ``onnxruntime`` on the CPU, ``onnxruntime-cuda`` and ``tensorrt`` on a
            GPU; ``portable`` is the canonical ONNX file itself.
        device: where it runs.
        dtype: of weights and activations; ``auto`` is the checkpoint's own where the target takes it.
        kv_dtype: of the KV cache; ``auto`` is ``dtype``.
        batch: sequences per step.
        prompt: tokens of one prompt.
        capacity: tokens of one sequence, prompt and generated, the KV cache holds; ``capacity.max``, lowered
            to what the model holds, is the ``max_capacity`` of an engine.
        prefill_chunk: longest piece of a prompt given to the engine in one step, in tokens.
        parity: thresholds of ``verify`` and of the check after ``build``.
        description: one line for people.
        gpu: marketing name of the GPU, ``A100``. compute_capability: ``"8.0"``. memory_mib: its memory, in
            MiB; what cannot fit is refused before it is built. None: not checked.
        builder: what makes the engine for a GPU: the full TensorRT, TensorRT-RTX, or ONNX Runtime, which
            makes the target ``onnxruntime-cuda``. ``auto`` is the full TensorRT where it and a GPU are at
            hand, else TensorRT-RTX for a GPU that it lists as supported, else ONNX Runtime.
        max_logits: positions per sequence whose logits one step on a GPU can return.
        version_compatible: whether newer TensorRT versions may load the engine.
        weight_streaming: whether weights may stay in host memory and be streamed to the GPU while it runs.
        quality: what quantization may cost; measured where quantizing is part of the build.
        quantization: of the weights. Of a checkpoint that is quantized already only ``activations`` matter.
        workspace_mib: scratch memory the engine builder may use, in MiB; None is the builder's default.
        threads: CPU threads, at most one per core of the machine that runs the engine; 0 is one per core.
        origin: where each value (by dotted key) came from, ``override`` being the command line or the
            argument ``overrides``; not part of the profile's identity.
    """

    name: str
    target: Target
    device: Device
    dtype: DtypeChoice
    kv_dtype: DtypeChoice
    batch: Range
    prompt: Range
    capacity: Range
    prefill_chunk: int
    parity: ParityThresholds
    description: str = ""
    gpu: str | None = None
    compute_capability: str | None = None
    quantization: Quantization = field(default_factory=Quantization)
    quality: QualityThresholds = field(default_factory=QualityThresholds)
    memory_mib: int | None = None
    builder: Builder = "auto"
    max_logits: int = 64
    version_compatible: bool = False
    weight_streaming: bool = False
    workspace_mib: int | None = None
    threads: int = 0
    origin: Mapping[str, Origin] = field(
        default_factory=dict, compare=False, repr=False, metadata={"plain": False}
    )

    def __post_init__(self) -> None:
        if not self.name:
            raise ProfileError("name must not be empty")
        self._check_target()
        self._check_sizes()

    def _check_target(self) -> None:
        device = _DEVICES.get(self.target, self.device)
        if self.device != device:
            raise ProfileError(f"target {self.target!r} needs device {device!r}, found {self.device!r}")
        for targets, names in _ONLY_FOR:
            for name in names if self.target not in targets else ():
                self._refuse_unless_default(name, targets)
        if self.compute_capability is not None and not re.fullmatch(r"\d{1,2}\.\d", self.compute_capability):
            raise ProfileError(f'compute_capability must look like "8.0", found {self.compute_capability!r}')
        if self.device == "cuda" and self.target != "portable":
            self._check_gpu()
        if self.target == "onnxruntime" and self.dtype != "float32":
            raise ProfileError(
                f"dtype {self.dtype!r} is not implemented for ONNX Runtime on cpu; use 'float32': weights "
                "are read in the type they have"
            )

    def _refuse_unless_default(self, key: str, targets: tuple[str, ...]) -> None:
        """Refuse a value that nothing would read."""
        section, _, name = key.rpartition(".")
        owner = getattr(self, section) if section else self
        value = getattr(owner, name)
        if value != next(item.default for item in dataclasses.fields(owner) if item.name == name):
            raise ProfileError(
                f"{key} is {value!r}, which is for target {' or '.join(map(repr, targets))} alone; "
                f"the target is {self.target!r}: leave it out"
            )

    def _check_gpu(self) -> None:
        name = {"tensorrt": "TensorRT", "onnxruntime-cuda": "ONNX Runtime on CUDA"}[self.target]
        if self.quantization.enabled and not self.quantization.symmetric:
            raise ProfileError(
                f"quantization.symmetric false is not implemented for {name}, which takes no zero points of "
                "blocks; leave it true"
            )
        if self.target == "tensorrt" and self.compute_capability is None:
            raise ProfileError("target 'tensorrt' needs a compute_capability such as \"8.0\", found null")
        capability = self.compute_capability
        if self.target == "onnxruntime-cuda" and capability and float(capability) < float(OLDEST_GPU):
            raise ProfileError(
                f"compute_capability is {capability}, and engines for ONNX Runtime need {OLDEST_GPU} or later"
            )
        if (self.target, self.builder) in _CONTRADICTIONS:
            raise ProfileError(
                f"builder {self.builder!r} does not make engines for target {self.target!r}; leave it 'auto'"
            )
        if self.dtype == "float32":
            raise ProfileError(
                f"dtype 'float32' is not implemented for {name}; use float16, bfloat16 or auto"
            )
        if self.kv_dtype not in ("auto", self.dtype):
            raise ProfileError(
                f"kv_dtype {self.kv_dtype!r} beside dtype {self.dtype!r} is not implemented; use 'auto'"
            )

    def _check_sizes(self) -> None:
        if self.prompt.max > self.capacity.max:
            raise ProfileError(
                f"prompt.max {self.prompt.max} exceeds capacity.max {self.capacity.max}: "
                "a prompt must fit the cache"
            )
        if not 1 <= self.prefill_chunk <= self.prompt.max:
            raise ProfileError(
                f"prefill_chunk must be from 1 to prompt.max {self.prompt.max}, found {self.prefill_chunk}"
            )
        for name in ("workspace_mib", "memory_mib"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_MIB:
                raise ProfileError(f"{name} must be from 1 to {MAX_MIB}, or null, found {value}")
        for name, low, value, high in (
            ("batch.max", 1, self.batch.max, MAX_BATCH),
            ("capacity.max", 1, self.capacity.max, MAX_TOKENS),
            ("max_logits", 1, self.max_logits, MAX_TOKENS),
            ("threads", 0, self.threads, MAX_THREADS),
        ):
            if not low <= value <= high:
                raise ProfileError(f"{name} must be from {low} to {high}, found {value}")

    @property
    def graph_dtype(self) -> str | None:
        """The type asked for; None for the checkpoint's own."""
        return None if self.dtype == "auto" else self.dtype

    def step_ranges(self) -> tuple[StepRanges, StepRanges]:
        """What a prefill and a decode step on a GPU take."""
        longest = Range(1, min(self.prompt.opt, self.prefill_chunk), self.prefill_chunk)
        logits = Range(1, 1, min(self.max_logits, self.prefill_chunk))
        one = Range(1, 1, 1)
        prefill = StepRanges(self.batch, longest, logits, self.capacity)
        return prefill, StepRanges(self.batch, one, one, self.capacity)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML, without ``origin``; :meth:`from_dict` reads it back."""
        result: dict[str, Any] = to_plain(self)
        return result

    @classmethod
    def from_dict(cls, data: object, label: str = "profile") -> Profile:
        """Read what :meth:`to_dict` wrote. Every key must be present.

        Raises:
            ProfileError: naming ``label``, the key, what was expected and found.
        """
        return from_plain(cls, data, Source(label, ProfileError))

    def leaves(self) -> dict[str, object]:
        """Every value by its dotted key, ``capacity.max``, as plain data."""
        return dict(_dotted(self.to_dict()))

    def overrides(self) -> dict[str, object]:
        """Values that take precedence over the file, as ``profile_loading.load_profile`` takes them."""
        return {key: value for key, value in self.leaves().items() if self.origin.get(key) == "override"}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of nested mappings with its dotted key."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, join(prefix, name))
        else:
            yield join(prefix, name), value
