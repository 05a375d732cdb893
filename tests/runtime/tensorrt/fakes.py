"""A GPU made of host memory, and a TensorRT engine on it that computes ``hashed_logits`` from its cache.

The fake engine reads and writes nothing but the addresses it was given, so what comes out is right only if
every address, shape and copy is.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from q2export.contracts import opspec
from q2export.contracts.dtypes import BY_NAME
from q2export.errors import GenerationError
from q2export.package.manifest import EngineInfo, TensorRTInfo
from q2export.runtime.backends.cuda.runtime import Device
from q2export.runtime.backends.tensorrt.engine_file import LoadedEngine, expected_tensors, read_profile
from tests.runtime.fakes import hashed_logits

HEADS, HEAD_DIM, LAYERS, VOCAB = 2, 4, 3, 37
Range = tuple[tuple[int, ...], tuple[int, ...]]


def engine_info(**changes: Any) -> EngineInfo:
    values: dict[str, Any] = {
        "format": "tensorrt",
        "file": "rank0.engine",
        "dtype": "float16",
        "kv_dtype": "float32",  # wide enough for the fake to keep token ids in
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_batch": 4,
        "max_capacity": 64,
        "prefill_chunk": 8,
        "context_length": 64,
        "tensorrt": TensorRTInfo("rtx", "1.7.1.116", "8.0", opspec.CONTRACT_VERSION, False, False),
    }
    return EngineInfo(**values | changes)


class FakeCuda:
    """Device memory is host memory that only known copies and the engine touch; every call is recorded."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.device_memory: dict[int, Any] = {}
        self.host_memory: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.limit = limit
        self.capturing: list[Callable[[], None]] | None = None
        self.is_current = True  # as long as a test does not say that another GPU is

    def select(self, compute_capability: str) -> Device:
        return Device("Fake A100", "8.0")

    @contextmanager
    def selected(self) -> Iterator[None]:
        before, self.is_current = self.is_current, True
        try:
            yield
        finally:
            self.is_current = before

    def _allocate(self, where: dict[int, Any], size: int) -> int:
        assert self.is_current
        if sum(len(block) for block in self.device_memory.values()) + size > self.limit:
            raise GenerationError(f"CUDA: cudaMalloc of {size:,} bytes failed with cudaErrorMemoryAllocation")
        block = (ctypes.c_ubyte * (size + 256))(*([0xFF] * 0))
        ctypes.memset(block, 0x5A, size + 256)
        address = -(-ctypes.addressof(block) // 256) * 256
        where[address] = block
        return address

    def free_memory(self) -> int:
        return self.limit - sum(len(block) for block in self.device_memory.values())

    def allocate(self, size: int) -> int:
        self.calls.append(("allocate", size))
        return self._allocate(self.device_memory, size)

    def free(self, address: int) -> None:
        assert self.is_current
        self.calls.append(("free", address))
        del self.device_memory[address]

    def allocate_host(self, size: int) -> int:
        return self._allocate(self.host_memory, size)

    def free_host(self, address: int) -> None:
        del self.host_memory[address]

    def create_stream(self) -> int:
        return 7

    def synchronize(self, stream: int) -> None:
        assert (stream, self.capturing, self.is_current) == (7, None, True)
        self.calls.append(("synchronize",))

    def enqueue(self, name: str, work: Callable[[], None], stream: int) -> None:
        assert (stream, self.is_current) == (7, True)
        self.calls.append((name,))
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def inside(self, memory: dict[int, Any], address: int, size: int) -> bool:
        return any(base <= address and address + size <= base + len(memory[base]) - 256 for base in memory)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        assert self.inside(self.device_memory, target, size) and self.inside(self.host_memory, source, size)
        self.enqueue("upload", lambda: ctypes.memmove(target, source, size) and None, stream)

    def download(self, target: int, source: int, size: int, stream: int) -> None:
        assert self.inside(self.host_memory, target, size) and self.inside(self.device_memory, source, size)
        self.enqueue("download", lambda: ctypes.memmove(target, source, size) and None, stream)

    def copy_strided(
        self, target: int, source: int, pitch: int, width: int, height: int, stream: int
    ) -> None:
        assert 0 < width <= pitch

        def work() -> None:
            for piece in range(height):
                for address in (target, source):
                    assert self.inside(self.device_memory, address + piece * pitch, width)
                ctypes.memmove(target + piece * pitch, source + piece * pitch, width)

        self.enqueue("copy_strided", work, stream)

    def capture(self, enqueue: Callable[[], None], stream: int) -> int:
        self.calls.append(("capture",))
        self.capturing = []
        try:
            enqueue()
            graph = len(self.graphs) + 1
            self.graphs[graph] = self.capturing
        finally:
            self.capturing = None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        assert self.is_current
        self.calls.append(("launch", graph))
        for work in self.graphs[graph]:
            work()

    def destroy_graph(self, graph: int) -> None:
        self.calls.append(("destroy_graph", graph))
        del self.graphs[graph]

    def count(self, name: str) -> int:
        return sum(call[0] == name for call in self.calls)


def ranges(
    batch: tuple[int, int], sequence: tuple[int, int], logits: tuple[int, int], capacity: tuple[int, int]
) -> dict[str, Range]:
    """Smallest and largest shapes of all inputs of one profile."""
    bounds = list(zip(batch, sequence, logits, capacity, strict=True))
    found: dict[str, Range] = {
        "input_ids": tuple((b, s) for b, s, _, _ in bounds),  # type: ignore[dict-item]
        "past_lengths": tuple((b,) for b, *_ in bounds),  # type: ignore[dict-item]
        "query_lengths": tuple((b,) for b, *_ in bounds),  # type: ignore[dict-item]
        "logits_indices": tuple((b, n) for b, _, n, _ in bounds),  # type: ignore[dict-item]
    }
    cache: Range = tuple((b, HEADS, c, HEAD_DIM) for b, *_, c in bounds)  # type: ignore[assignment]
    return found | {f"past_{k}.{i}": cache for i in range(LAYERS) for k in ("key", "value")}


PREFILL = ranges((1, 4), (1, 8), (1, 8), (1, 64))
DECODE = ranges((1, 4), (1, 1), (1, 1), (1, 64))


class FakeContext:
    """Appends token ids to every layer's cache and hashes the prefix it finds there."""

    def __init__(self, cuda: FakeCuda, limits: list[dict[str, Range]], capturable: bool) -> None:
        self._cuda = cuda
        self._limits = limits
        self._capturable = capturable
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.steps: list[dict[str, tuple[int, ...]]] = []

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert self._cuda.inside(self._cuda.device_memory, address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, largest = self._limits[self.profile][name]
        self.shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(smallest, shape, largest, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return self._capturable

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        self._cuda.enqueue("execute", lambda: self._execute(shapes, addresses), stream)
        return True

    def _execute(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        def tensor(name: str, shape: tuple[int, ...], dtype: type) -> Any:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            address = addresses[name]
            assert self._cuda.inside(self._cuda.device_memory, address, size), name
            return np.frombuffer((ctypes.c_byte * size).from_address(address), dtype).reshape(shape)

        self.steps.append(dict(shapes))
        step = {
            name: tensor(name, shapes[name], np.int64)
            for name in ("input_ids", "past_lengths", "query_lengths", "logits_indices")
        }
        rows, sequence = step["input_ids"].shape
        caches = []
        for layer in range(LAYERS):
            for kind in ("key", "value"):
                past, present = f"past_{kind}.{layer}", f"present_{kind}.{layer}"
                assert addresses[past] == addresses[present]
                caches.append(tensor(past, shapes[past], np.float32))
        logits = tensor("logits", (*step["logits_indices"].shape, VOCAB), np.float32)
        for row in range(rows):
            past, query = int(step["past_lengths"][row]), int(step["query_lengths"][row])
            assert 1 <= query <= sequence and past + query <= caches[0].shape[2]
            tokens = step["input_ids"][row, :query]
            for cache in caches:
                cache[row, :, past : past + query] = tokens[None, :, None]
            first = caches[0][row, 0, :, 0]
            for cache in caches:
                assert (cache[row, :, : past + query] == first[None, : past + query, None]).all()
            for column, index in enumerate(step["logits_indices"][row]):
                assert 0 <= index < query
                logits[row, column] = hashed_logits(first[: past + index + 1].astype(int).tolist(), VOCAB)


class FakeRuntimeCache:
    """``IRuntimeCache`` that takes what begins with its version."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, data: bytes) -> bool:
        taken = data.startswith(b"1.7:")
        self.kernels = data[4:] if taken else self.kernels
        return taken

    def serialize(self) -> bytes | None:
        return b"1.7:" + self.kernels if self.kernels else None


class FakeRuntimeConfig:
    """``IRuntimeConfig`` of TensorRT-RTX."""

    def __init__(self) -> None:
        self.strategy = "static"
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cache: FakeRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeEngine:
    """``ICudaEngine`` of the manifest's inputs and outputs, with ``streamable`` bytes of weights."""

    def __init__(
        self, cuda: FakeCuda, limits: list[dict[str, Range]], capturable: bool = True, streamable: int = 0
    ) -> None:
        self._cuda = cuda
        self._limits = limits
        self._capturable = capturable
        self.contexts: list[FakeContext] = []
        self.configs: list[FakeRuntimeConfig] = []
        self.num_optimization_profiles = len(limits)
        self.streamable_weights_size = streamable
        self._weights: int | None = None
        self._budget = streamable

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        """Refused, as TensorRT does, in silence once there is a context."""
        if self.contexts or not self.streamable_weights_size:
            return
        if self._weights is not None:
            self._cuda.free(self._weights)
        self._weights = self._cuda.allocate(budget) if budget else None
        self._budget = budget

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        staging = 5000 if self._budget < self.streamable_weights_size else 0
        return 1000 * (index + 1) + staging

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, settings: object) -> FakeContext:
        if isinstance(settings, FakeRuntimeConfig):
            self.configs.append(settings)
            settings = settings.strategy
        assert settings == "user managed"
        self.contexts.append(FakeContext(self._cuda, self._limits, self._capturable))
        return self.contexts[-1]


TRT: Any = SimpleNamespace(
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    TensorIOMode=SimpleNamespace(INPUT="input"),
    TensorLocation=SimpleNamespace(DEVICE="device"),
)

RTX: Any = SimpleNamespace(
    **vars(TRT), DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager", LAZY="lazy")
)


def loaded(engine: FakeEngine, limits: list[dict[str, Range]]) -> LoadedEngine:
    return LoadedEngine(engine, None, tuple(read_profile(i, one) for i, one in enumerate(limits)))


class FakeFile:
    """What ``engine_file`` asks of a deserialized engine; tensors as the manifest has them, or changed."""

    def __init__(self, info: EngineInfo, limits: list[dict[str, Range]]) -> None:
        self.tensors = expected_tensors(info)
        self.limits = limits
        self.num_optimization_profiles = len(limits)
        self.aliases: dict[str, str | None] = {
            name: name.replace("present", "past") for name in self.tensors if name.startswith("present")
        }

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        dtype = self.tensors[name].dtype
        return SimpleNamespace(name=BY_NAME[dtype].tensorrt if dtype in BY_NAME else dtype)

    def get_tensor_mode(self, name: str) -> str:
        return "input" if self.tensors[name].is_input else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def get_tensor_location(self, name: str) -> str:
        return "device" if self.tensors[name].on_device else "host"

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self.aliases.get(name)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        smallest, largest = self.limits[index][name]
        return [smallest, largest, largest]
