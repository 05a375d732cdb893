"""One way to build engines with ``tensorrt`` and ``tensorrt_rtx``: parse, list the layers, build.

::

    trt = import_tensorrt("auto")
    network = Network(trt, Path("model.onnx"))
    network.build(options, sink)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from q2export.contracts.progress import Advance, silent
from q2export.contracts.ranges import StepRanges
from q2export.contracts.step import DYNAMIC, tensor_named
from q2export.errors import ExportError
from q2export.plugins.tensorrt.callbacks import (
    PROGRESS_STEPS,
    ByteSink,
    make_logger,
    make_monitor,
    make_writer,
    stopping_on_signals,
)
from q2export.plugins.tensorrt.loader import is_rtx
from q2export.plugins.tensorrt.preflight import check_onnx
from q2export.plugins.tensorrt.refusals import take_refusals
from q2export.plugins.tensorrt.registry import register
from q2export.plugins.tensorrt.targets import rtx_targets, title

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        compute_capability: of the GPUs it is for, ``"8.0"``.
        profiles: sizes of each optimization profile, in order.
        workspace_mib: scratch memory of the layers, in MiB; None is the builder's default.
        version_compatible: whether newer versions may load it.
        weight_streaming: whether weights may be streamed from the host while it runs.
        timing_cache: file of measured kernels, read and updated; None for none. TensorRT-RTX measures
            nothing.
    """

    compute_capability: str
    profiles: tuple[StepRanges, ...]
    workspace_mib: int | None = None
    version_compatible: bool = False
    weight_streaming: bool = False
    timing_cache: Path | None = None


class Network:
    """An ONNX file, parsed. Weights stay in their files until they are needed.

    Args:
        trt: from ``import_tensorrt``.
        onnx: path of the file; its external data are read relative to it.

    Raises:
        ExportError: the file cannot be parsed; the message names the node and the reason.
    """

    def __init__(self, trt: ModuleType, onnx: Path) -> None:
        self.trt = trt
        self._errors: list[str] = []
        self._logger = make_logger(trt, self._errors)
        register(trt)
        plugins = check_onnx(onnx)
        self._builder = trt.Builder(self._logger)
        flag = getattr(
            trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None
        )  # later versions know no other
        self.definition: Any = self._builder.create_network(0 if flag is None else 1 << int(flag))
        self._parser = trt.OnnxParser(self.definition, self._logger)  # owns weights of the network
        take_refusals()
        if not self._parser.parse_from_file(str(onnx)):
            raise ExportError(f"{onnx}: {title(trt)} cannot parse it: {self._parse_problem()}")
        kind = trt.LayerType.PLUGIN_V3
        found = sum(self.definition.get_layer(i).type == kind for i in range(self.definition.num_layers))
        if found != plugins:
            raise ExportError(f"{onnx}: {plugins} nodes are to be plugins, {title(trt)} made {found} of them")

    def _parse_problem(self) -> str:
        """The first error of the parser: node and reason."""
        if refusals := take_refusals():
            return "; ".join(refusals)
        if not self._parser.num_errors:
            return "no reason given"
        error = self._parser.get_error(0)
        node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
        return node + _one_line(error.desc())

    def build(self, options: BuildOptions, sink: ByteSink, advance: Advance = silent) -> None:
        """Build and serialize the engine.

        Args:
            options: how.
            sink: receives the engine, in pieces, so that it is never whole in memory a second time.
            advance: told of progress, ``callbacks.PROGRESS_STEPS`` in all.

        Raises:
            ExportError: TensorRT refuses; the message has its reasons.
            KeyboardInterrupt: ctrl-C; the sink may have received some bytes.
        """
        trt = self.trt
        config = self._config(options)
        failures: list[Exception] = []
        self._errors.clear()
        take_refusals()
        writer = make_writer(trt, sink, failures)
        with stopping_on_signals() as interrupt:
            config.progress_monitor = monitor = make_monitor(trt, advance, interrupt)
            built = self._builder.build_serialized_network_to_stream(self.definition, config, writer)
        if failures:
            raise failures[0]
        if not built:
            reasons = take_refusals() or _reasons(self._errors)
            raise ExportError(f"{title(trt)} cannot build the engine: {'; '.join(reasons)}")
        advance(PROGRESS_STEPS - monitor.shown)
        self._save_timing_cache(config, options)

    def _config(self, options: BuildOptions) -> Any:
        trt = self.trt
        config = self._builder.create_builder_config()
        # present_key.i and present_value.i are past_key.i and past_value.i, updated in place
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if is_rtx(trt):
            config.num_compute_capabilities = 1
            config.set_compute_capability(rtx_targets(trt)[options.compute_capability], 0)
            # A step that allocates memory while it runs cannot be captured in a CUDA graph. Streaming has to.
            if not options.weight_streaming:
                config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            if is_rtx(trt):  # its wheel has no lean runtime to put into the engine
                config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
        if options.weight_streaming:
            config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
        for ranges in options.profiles:
            self._add_profile(config, ranges)
        self._load_timing_cache(config, options)
        return config

    def _add_profile(self, config: Any, ranges: StepRanges) -> None:
        profile = self._builder.create_optimization_profile()
        for index in range(self.definition.num_inputs):
            tensor = self.definition.get_input(index)
            declared = tensor_named(tensor.name)
            if declared is None:
                raise ExportError(f"the network has an input {tensor.name!r} no profile gives a shape to")
            sizes = zip(declared.shape, tensor.shape, strict=True)
            shape = [name if name in DYNAMIC else fixed for name, fixed in sizes]
            profile.set_shape(tensor.name, *ranges.shapes(shape))
        if config.add_optimization_profile(profile) < 0:
            raise ExportError(f"{title(self.trt)} refuses the ranges {ranges}: {_reasons(self._errors)[0]}")

    def _load_timing_cache(self, config: Any, options: BuildOptions) -> None:
        path = options.timing_cache
        if path is None or is_rtx(self.trt):
            return
        data = path.read_bytes() if path.exists() else b""
        if not config.set_timing_cache(config.create_timing_cache(data), ignore_mismatch=False):
            _log.warning("%s: made by another TensorRT or for another GPU; not used", path)
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def _save_timing_cache(self, config: Any, options: BuildOptions) -> None:
        path = options.timing_cache
        if path is None or is_rtx(self.trt):
            return
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(path)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _is_noise(line)]
    return "; ".join(dict.fromkeys(lines)) or "no reason given"


def _reasons(errors: Sequence[str]) -> list[str]:
    """What TensorRT logged, each once; without the driver it may do without."""
    return list(dict.fromkeys(_one_line(error) for error in errors if not _is_noise(error))) or [
        "no reason given"
    ]


def _is_noise(line: str) -> bool:
    return "catchCudaError" in line  # TensorRT-RTX looks for a driver after every failure
