"""Loading a serialized engine and checking that it is the engine the manifest describes."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from q2export.contracts.dtypes import BY_TENSORRT
from q2export.contracts.step import cache_names
from q2export.errors import PackageError
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.plugins.tensorrt.callbacks import keep_logger
from q2export.runtime.backends.cuda.steps import Shape, StepProfile, read_profile
from q2export.runtime.backends.tensorrt.compatibility import Found, mismatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine; -1 in the shape is a dynamic dimension."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    on_device: bool = True


@dataclass(frozen=True)
class LoadedEngine:
    """A deserialized engine.

    Attributes:
        engine: ``ICudaEngine``. runtime: what it was made with, which must live as long.
        profiles: what each optimization profile takes, in order.
    """

    engine: Any
    runtime: Any
    profiles: tuple[StepProfile, ...]


def load_engine(
    path: Path, info: EngineInfo, trt: ModuleType, built: TensorRTInfo, found: Found, rebuild_command: str
) -> LoadedEngine:
    """Deserialize an engine.

    Args:
        path: of the engine.
        info: from the manifest.
        trt: the library it was built with, its plugins registered.
        built, found: for the message if the library refuses.
        rebuild_command: likewise.

    Raises:
        PackageError: the library refuses the engine, or it is not the one the manifest describes.
    """
    logger, messages = _logger(trt)
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = built.version_compatible
    if not path.stat().st_size:  # which cannot be mapped
        raise PackageError(
            f"{path}: expected an engine, found an empty file; rebuild with: {rebuild_command}"
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        reason = messages[-1] if messages else "the library gives no reason"
        raise mismatch(str(path), built, found, rebuild_command, reason)
    tensors = read_tensors(trt, engine)
    alias_names = {
        name: engine.get_aliased_input_tensor(name) for name, one in tensors.items() if not one.is_input
    }
    check_tensors(str(path), info, tensors, alias_names, rebuild_command)
    profiles = tuple(
        read_profile(index, _ranges(engine, tensors, index))
        for index in range(engine.num_optimization_profiles)
    )
    check_profiles(str(path), info, profiles, rebuild_command)
    return LoadedEngine(engine, runtime, profiles)


def read_tensors(trt: ModuleType, engine: Any) -> dict[str, Tensor]:
    """Inputs and outputs of an ``ICudaEngine``, by name."""
    found = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        type_name = engine.get_tensor_dtype(name).name
        found[name] = Tensor(
            name,
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            BY_TENSORRT[type_name].name if type_name in BY_TENSORRT else type_name,
            tuple(engine.get_tensor_shape(name)),
            engine.get_tensor_location(name) == trt.TensorLocation.DEVICE,
        )
    return found


def expected_tensors(info: EngineInfo) -> dict[str, Tensor]:
    """The inputs and outputs of an engine, from the manifest."""
    signature = info.signature
    return {
        tensor.name: Tensor(
            tensor.name,
            is_input,
            tensor.dtype,
            tuple(size if isinstance(size, int) else -1 for size in tensor.shape),
        )
        for is_input, tensors in ((True, signature.inputs), (False, signature.outputs))
        for tensor in tensors
    }


def check_tensors(
    path: str,
    info: EngineInfo,
    found: Mapping[str, Tensor],
    alias_names: Mapping[str, str | None],
    rebuild_command: str,
) -> None:
    """Refuse an engine whose inputs and outputs are not those of the manifest, or whose cache lies elsewhere.

    TensorRT documents its answer on aliases for its own cache layer and need not know those of plugins, so no
    answer is no reason to refuse. The addresses bound are the same either way.

    Args:
        path: of the engine.
        info: from the manifest.
        found: inputs and outputs, by name.
        alias_names: output -> the input it shares memory with; None where TensorRT names none.
        rebuild_command: for the message.

    Raises:
        PackageError: naming the first tensor that differs, with both sides.
    """
    expected = expected_tensors(info)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise PackageError(
                f"{path}: {name}: expected {_shown(expected.get(name))}, found {_shown(found.get(name))}; "
                f"rebuild with: {rebuild_command}"
            )
    for names in cache_names(info.num_hidden_layers):
        alias = alias_names.get(names.present)
        if alias and alias != names.past:
            raise PackageError(
                f"{path}: {names.present} must update {names.past} in place, but shares memory with {alias}; "
                f"rebuild with: {rebuild_command}"
            )


def check_profiles(
    path: str, info: EngineInfo, profiles: tuple[StepProfile, ...], rebuild_command: str
) -> None:
    """Refuse an engine whose profiles do not take every step the manifest promises.

    Raises:
        PackageError: there is none for a single row, or for the largest batch and capacity, or none is wide
            enough for more than one token.
    """
    for rows in (1, info.max_batch):
        if not any(rows in one.rows and info.max_capacity in one.capacity for one in profiles):
            raise PackageError(
                f"{path}: no optimization profile takes a batch of {rows} with a capacity of "
                f"{info.max_capacity} tokens, which the manifest promises; rebuild with: {rebuild_command}"
            )


def _ranges(engine: Any, tensors: Mapping[str, Tensor], index: int) -> dict[str, tuple[Shape, Shape]]:
    """Input -> smallest and largest shape in one profile."""
    shapes = {
        name: engine.get_tensor_profile_shape(name, index) for name, one in tensors.items() if one.is_input
    }
    return {name: (tuple(smallest), tuple(largest)) for name, (smallest, _, largest) in shapes.items()}


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "none of that name"
    kind = "input" if tensor.is_input else "output"
    place = "" if tensor.on_device else " in host memory"
    return f"{kind} {tensor.dtype}{list(tensor.shape)}{place}"


def _logger(trt: ModuleType) -> tuple[Any, list[str]]:
    """An ``ILogger`` that passes messages on to Python's logging, and the errors it has seen."""
    messages: list[str] = []
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.Severity.ERROR, base.Severity.INTERNAL_ERROR):
                messages.append(message)
                _log.error("%s", message)
            elif severity == base.Severity.WARNING:
                _log.warning("%s", message)
            else:
                _log.debug("%s", message)

    return keep_logger(Logger()), messages
