"""Profiles: what an engine is built for, as data.

A profile is a YAML file (packaged in ``q2export.profiles``, or the user's own) and a few values from the
command line. Precedence: command line > profile file > default of the dataclass.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from q2export.codec import Source, decode, fields_of, from_plain, join, to_plain
from q2export.errors import ProfileError
from q2export.quantization import Quantization
from q2export.ranges import Range, StepRanges
from q2export.strict_yaml import parse_yaml, read_yaml
from q2export.suggest import nearest

Target = Literal["onnxruntime", "tensorrt", "portable"]
Device = Literal["cpu", "cuda"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Builder = Literal["auto", "tensorrt", "rtx"]
Prepack = Literal["auto", "always", "never"]
Origin = Literal["default", "profile", "command line", "lowered to fit"]

COMMAND_LINE: Literal["command line"] = "command line"


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
        target: what runs the engine; ``portable`` is the canonical ONNX file itself.
        device: where it runs.
        dtype: of weights and activations; ``auto`` is the checkpoint's own where the target takes it.
        kv_dtype: of the KV cache; ``auto`` is ``dtype``.
        batch: sequences per step.
        prompt: tokens of one prompt.
        capacity: tokens of one sequence, prompt and generated, the KV cache holds.
        prefill_chunk: longest piece of a prompt given to the engine in one step, in tokens.
        parity: thresholds of ``verify`` and of the check after ``build``.
        description: one line for people.
        gpu: marketing name of the GPU, ``A100``. compute_capability: ``"8.0"``. memory_mib: its memory, in
            MiB; what cannot fit is refused before it is built. None: not checked.
        builder: which TensorRT builds the engine; ``auto`` is the full one where it and a GPU are at hand.
        max_logits: positions per sequence whose logits one step of a TensorRT engine can return.
        version_compatible: whether newer TensorRT versions may load the engine.
        weight_streaming: whether weights may stay in host memory and be streamed to the GPU while it runs.
        quantization: of the weights. Of a checkpoint that is quantized already only ``activations`` matter.
        workspace_mib: scratch memory the engine builder may use, in MiB; None is the builder's default.
        threads: CPU threads; 0 is one per core.
        prepack: whether ONNX Runtime keeps its own, faster copy of the matrices in memory. ``auto``: where
            the weights were converted anyway; those of an fp32 checkpoint stay mapped.
        origin: where each value (dotted key) came from; not part of the profile's identity.
    """

    name: str
    target: Target
    device: Device
    dtype: Dtype
    kv_dtype: Dtype
    batch: Range
    prompt: Range
    capacity: Range
    prefill_chunk: int
    parity: ParityThresholds
    description: str = ""
    gpu: str | None = None
    compute_capability: str | None = None
    quantization: Quantization = field(default_factory=Quantization)
    memory_mib: int | None = None
    builder: Builder = "auto"
    max_logits: int = 64
    version_compatible: bool = False
    weight_streaming: bool = False
    workspace_mib: int | None = None
    threads: int = 0
    prepack: Prepack = "auto"
    origin: Mapping[str, Origin] = field(
        default_factory=dict, compare=False, repr=False, metadata={"plain": False}
    )

    def __post_init__(self) -> None:
        if not self.name:
            raise ProfileError("name must not be empty")
        self._check_device()
        self._check_sizes()

    def _check_device(self) -> None:
        if self.target == "tensorrt" and self.device != "cuda":
            raise ProfileError(f"target 'tensorrt' needs device 'cuda', found {self.device!r}")
        if self.device == "cpu" and (self.gpu or self.compute_capability):
            raise ProfileError("device 'cpu' takes neither gpu nor compute_capability; leave them null")
        if self.compute_capability is not None and not re.fullmatch(r"\d{1,2}\.\d", self.compute_capability):
            raise ProfileError(f'compute_capability must look like "8.0", found {self.compute_capability!r}')
        if self.target == "tensorrt":
            self._check_tensorrt()
        if self.target == "onnxruntime" and self.device == "cpu":
            for name, dtype in (("dtype", self.dtype), ("kv_dtype", self.kv_dtype)):
                if dtype != "float32":
                    raise ProfileError(
                        f"{name} {dtype!r} is not implemented for ONNX Runtime on cpu; use 'float32'"
                    )

    def _check_tensorrt(self) -> None:
        if self.quantization.enabled and not self.quantization.symmetric:
            raise ProfileError(
                "quantization.symmetric false is not implemented for TensorRT, which takes no zero points of "
                "blocks; leave it true"
            )
        if self.quantization.activations != "float32":
            raise ProfileError(
                f"quantization.activations {self.quantization.activations!r} is for ONNX Runtime; TensorRT "
                "multiplies quantized weights in the type of the engine: leave it 'float32'"
            )
        if self.compute_capability is None:
            raise ProfileError("target 'tensorrt' needs a compute_capability such as \"8.0\", found null")
        if self.dtype == "float32":
            raise ProfileError(
                "dtype 'float32' is not implemented for TensorRT; use float16, bfloat16 or auto"
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
            if value is not None and value < 1:
                raise ProfileError(f"{name} must be at least 1, or null, found {value}")
        if self.max_logits < 1:
            raise ProfileError(f"max_logits must be at least 1, found {self.max_logits}")
        if self.threads < 0:
            raise ProfileError(f"threads must be 0 (all cores) or more, found {self.threads}")

    @property
    def graph_dtype(self) -> str | None:
        """The type asked for; None for the checkpoint's own."""
        return None if self.dtype == "auto" else self.dtype

    def step_ranges(self, max_capacity: int) -> tuple[StepRanges, StepRanges]:
        """What the prefill and the decode profile of an engine of at most ``max_capacity`` tokens take."""
        capacity = _clipped(self.capacity, max_capacity)
        chunk = min(self.prefill_chunk, max_capacity)
        longest = Range(1, min(self.prompt.opt, chunk), chunk)
        logits = Range(1, 1, min(self.max_logits, chunk))
        one = Range(1, 1, 1)
        prefill = StepRanges(self.batch, longest, logits, capacity)
        return prefill, StepRanges(self.batch, one, one, capacity)

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

    def overrides(self) -> dict[str, object]:
        """The values given on the command line, by dotted key, as :func:`load_profile` takes them."""
        flat = _flatten(Profile, self.to_dict(), Source(self.name, ProfileError))
        return {key: flat[key] for key, origin in self.origin.items() if origin == COMMAND_LINE}


def _clipped(wanted: Range, largest: int) -> Range:
    return Range(*(min(bound, largest) for bound in (wanted.min, wanted.opt, wanted.max)))


def profile_names() -> list[str]:
    """Names of the packaged profiles, sorted."""
    entries = importlib.resources.files("q2export.profiles").iterdir()
    return sorted(entry.name[: -len(".yaml")] for entry in entries if entry.name.endswith(".yaml"))


def parse_overrides(settings: Iterable[str]) -> dict[str, object]:
    """Turn ``["capacity.max=8192", "threads=2"]`` (``--set``) into overrides for :func:`load_profile`.

    Values are read as in a profile file, except that what belongs to a string needs no quotes
    (``compute_capability=8.0``).

    Raises:
        ProfileError: no ``=``, a key given twice, or a value that is not valid YAML.
    """
    leaves, overrides = _leaves(Profile), {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ProfileError(f"--set {setting}: expected KEY=VALUE, for example capacity.max=8192")
        if key in overrides:
            raise ProfileError(f"--set {key} is given twice")
        is_text = leaves.get(key) in (str, str | None) and text != "null"
        overrides[key] = text if is_text else parse_yaml(text, f"--set {setting}", ProfileError)
    return overrides


def load_profile(name_or_path: str | Path, overrides: Mapping[str, object] | None = None) -> Profile:
    """Load a packaged profile by name, or a profile file by path, and apply overrides by dotted key.

    A maximum given on the command line lowers what it leaves no room for: ``capacity.max=8192`` also lowers a
    ``prompt.max`` of 32768 that comes from the file. ``Profile.origin`` records it as ``"lowered to fit"``.

    Raises:
        ProfileError: no such profile, unknown key (naming the nearest valid one), wrong type, or values that
            contradict each other; the message names the file, or the command line, and the key.
    """
    label, data = _read(name_or_path)
    source, command_line = Source(label, ProfileError), Source("--set", ProfileError)
    values, origin = _defaults(Profile)
    for key, value in _flatten(Profile, data, source).items():
        values[key], origin[key] = value, "profile"
    for key, value in _checked_overrides(overrides or {}, command_line).items():
        values[key], origin[key] = value, COMMAND_LINE
    _lower_to_fit(values, origin)
    where = f"{label} with {', '.join(f'--set {key}' for key in overrides)}" if overrides else label
    profile = Profile.from_dict(_unflatten(values), where)
    return dataclasses.replace(profile, origin=dict(sorted(origin.items())))


def _read(name_or_path: str | Path) -> tuple[str, object]:
    """The label for messages and the raw data of a profile."""
    text = str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in text and not text.endswith((".yaml", ".yml")):
        names = profile_names()
        if text not in names:
            raise ProfileError(
                f"no packaged profile is called {text!r}{nearest(text, names)} ; or give a file, NAME.yaml"
            )
        resource = importlib.resources.files("q2export.profiles") / f"{text}.yaml"
        label = f"profile {text!r}"
        return label, parse_yaml(resource.read_text(encoding="utf-8"), label, ProfileError)
    path = Path(name_or_path)
    return str(path), read_yaml(path, ProfileError)


def _leaves(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> type of every scalar below a dataclass."""
    found: dict[str, Any] = {}
    for name, hint in fields_of(kind).items():
        key = join(prefix, name)
        is_section = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        found.update(_leaves(hint, key) if is_section else {key: hint})
    return found


def _defaults(kind: type) -> tuple[dict[str, object], dict[str, Origin]]:
    """Value of every scalar that has a default, by dotted key; sections have one for all they hold or none."""
    values: dict[str, object] = {}
    for item in dataclasses.fields(kind):
        if not item.metadata.get("plain", True):
            continue
        if item.default is not dataclasses.MISSING:
            values[item.name] = item.default
        elif item.default_factory is not dataclasses.MISSING:
            plain = to_plain(item.default_factory())
            values |= {join(item.name, name): value for name, value in plain.items()}
    return values, dict.fromkeys(values, "default")


def _flatten(kind: type, data: object, source: Source, prefix: str = "") -> dict[str, object]:
    """Dotted key -> checked value of what ``data`` gives; what it does not give is left out."""
    if not isinstance(data, Mapping):
        raise source.refuse(prefix, "a mapping", data)
    hints, flat = fields_of(kind), {}
    for name, value in data.items():
        if name not in hints:
            inside = f" in {prefix}" if prefix else ""
            raise ProfileError(f"{source.label}: unknown key {name!r}{inside}{nearest(str(name), hints)}")
        hint, key = hints[name], join(prefix, name)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            flat.update(_flatten(hint, value, source, key))
        else:
            flat[key] = decode(hint, value, source, key)
    return flat


def _checked_overrides(overrides: Mapping[str, object], source: Source) -> dict[str, object]:
    leaves = _leaves(Profile)
    leaves.pop("name")  # a name that finds another profile, or none, helps nobody
    for key in overrides:
        if key not in leaves:
            inner = [leaf for leaf in leaves if leaf.startswith(f"{key}.")]
            hint = f"; give one of {', '.join(inner)}" if inner else nearest(key, leaves)
            raise ProfileError(f"--set: unknown key {key!r}{hint}")
    return {key: decode(leaves[key], value, source, key) for key, value in overrides.items()}


_BOUNDED_BY = {
    "batch.opt": "batch.max",
    "batch.min": "batch.opt",
    "capacity.opt": "capacity.max",
    "capacity.min": "capacity.opt",
    "prompt.max": "capacity.max",
    "prompt.opt": "prompt.max",
    "prompt.min": "prompt.opt",
    "prefill_chunk": "prompt.max",
}


def _lower_to_fit(values: dict[str, object], origin: dict[str, Origin]) -> None:
    """Lower values that a bound from the command line, or one lowered for it, leaves no room for."""
    for key, bound in _BOUNDED_BY.items():
        value, limit = values.get(key), values.get(bound)
        if origin.get(key) == COMMAND_LINE or origin.get(bound) not in (COMMAND_LINE, "lowered to fit"):
            continue
        if isinstance(value, int) and isinstance(limit, int) and value > limit:
            values[key], origin[key] = limit, "lowered to fit"


def _unflatten(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree
