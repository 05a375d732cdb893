"""The C++ plugins, with the kernels compiled for the host: in TensorRT-RTX's registry.

They compile against TensorRT's headers, which are not in this repository; without them, tests are skipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from q2export import api
from q2export.contracts import opspec
from tests.host_cuda.compiling import CSRC
from tests.plugins.host_plugins import PLUGIN_SOURCES, compile_plugins

EXPORTS = CSRC / "tensorrt" / "exports.map"


@pytest.fixture(scope="session")
def plugins(headers: Path, host_kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("plugins") / "libq2export_plugins.so"
    flags = (f"-Wl,--version-script={EXPORTS}", "-Wl,-z,nodelete")
    return compile_plugins(output, headers, host_kernels, PLUGIN_SOURCES, *flags)


# ---------------------------------------------------------------- in TensorRT-RTX

SCRIPT = """
import ctypes, sys
from pathlib import Path
from q2export.errors import ExportError
from q2export.plugins.tensorrt.loader import import_tensorrt

trt = import_tensorrt("rtx")
library, way, model = sys.argv[1:]
if way == "dlopen":
    ctypes.CDLL(library)
else:
    trt.get_plugin_registry().load_library(library)
def ours():
    creators = trt.get_plugin_registry().all_creators
    return sorted(each.name for each in creators if each.plugin_namespace == "q2export")

print(*ours())

from q2export.plugins.tensorrt.builder import BuildOptions, Network
from q2export.contracts.ranges import Range, StepRanges

class Sink:
    size = 0
    def write(self, data):
        self.size += len(data)
        return len(data)

few, capacity = Range(1, 1, 2), Range(8, 32, 64)
steps = tuple(StepRanges(few, sequence, few, capacity) for sequence in (Range(1, 8, 16), Range(1, 1, 1)))
sink = Sink()
try:
    Network(trt, Path(model)).build(BuildOptions("8.0", steps), sink)
except ExportError as error:
    sys.exit(f"refused: {error}")
assert len(ours()) == 5, "the Python plugins stood in"
print(sink.size)
"""


@pytest.fixture(scope="session")
def models(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt")
    for name in ("qwen2-tiny", "qwen2-moe-tiny"):
        api.export(checkpoints / name, folder / name, target="tensorrt", dtype="float16")
    return folder


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python with TensorRT-RTX in a process of its own: the registry belongs to the process."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'q2export[rtx]'")
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("way", ["dlopen", "load_library"])
@pytest.mark.parametrize("name", ["qwen2-tiny", "qwen2-moe-tiny"])
def test_an_engine_builds(plugins: Path, models: Path, name: str, way: str) -> None:
    done = run_script(SCRIPT, plugins, way, models / name / "model.onnx")
    assert done.returncode == 0, done.stderr
    names, size = done.stdout.splitlines()
    assert names.split() == sorted(spec.name for spec in opspec.ALL)
    weights = (models / name / "weights.safetensors").stat().st_size
    assert int(size) > weights


def test_a_wrong_attribute_is_refused_by_node(plugins: Path, models: Path) -> None:
    import onnx

    path = models / "qwen2-moe-tiny" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == opspec.MOE.name)
    next(each for each in node.attribute if each.name == "top_k").i = 99
    changed = path.with_name("changed.onnx")
    onnx.save(model, changed)
    # The registry is asked directly: q2export itself would refuse the file before it is parsed.
    script = SCRIPT.split("from q2export.plugins.tensorrt.builder")[0] + (
        "logger = trt.Logger(trt.Logger.ERROR)\n"
        "network = trt.Builder(logger).create_network(0)\n"
        "sys.exit(0 if trt.OnnxParser(network, logger).parse_from_file(model) else 1)\n"
    )
    done = run_script(script, plugins, "dlopen", changed)
    assert done.returncode == 1
    assert f"node {node.name}: invalid argument: moe: top_k is 99" in done.stderr + done.stdout


def test_loaded_before_tensorrt_it_says_so(plugins: Path) -> None:
    done = run_script("import ctypes, sys; ctypes.CDLL(sys.argv[1])", plugins)
    assert done.returncode == 0
    assert "q2export: plugins are not registered: no TensorRT is loaded in this process" in done.stderr


def test_only_the_entry_points_are_exported(plugins: Path) -> None:
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(plugins)], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["getCreators", "setLoggerFinder"]


REGISTRIES = """
import ctypes, sys
import tensorrt_rtx_bindings as trt

library, *steps = sys.argv[1:]
builder = trt.Builder(trt.Logger())
registries = {"global": trt.get_plugin_registry(), "builder": builder.get_plugin_registry()}
handles = {}
for step in steps:
    if step == "dlopen":
        ctypes.CDLL(library)
    elif step.startswith("un"):
        registries[step[2:]].deregister_library(handles[step[2:]])
    else:
        handles[step] = registries[step].load_library(library)
        assert handles[step] is not None, step
print(*(sum(each.plugin_namespace == "q2export" for each in one.all_creators) for one in registries.values()))
"""


@pytest.mark.parametrize(
    ("steps", "in_global", "in_builder"),
    [
        ("dlopen", 5, 0),
        ("global", 5, 0),
        ("builder", 0, 5),
        ("dlopen global", 5, 0),
        ("dlopen builder", 0, 5),
        ("builder global", 5, 5),
        ("global dlopen", 5, 0),
        ("global unglobal global", 5, 0),
        ("dlopen builder unbuilder", 0, 0),
    ],
)
def test_the_library_may_come_in_any_way(plugins: Path, steps: str, in_global: int, in_builder: int) -> None:
    done = run_script(REGISTRIES, plugins, *steps.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{in_global} {in_builder}"


TO_RUN = """
import sys
from pathlib import Path
from types import SimpleNamespace
from q2export.contracts import opspec
from q2export.errors import MissingDependencyError
from q2export.plugins.tensorrt import native
from q2export.plugins.tensorrt.loader import import_tensorrt
from q2export.plugins.tensorrt.registry import GenericCreator, register

trt = import_tensorrt("rtx")
registry = trt.get_plugin_registry()
native.LIBRARY = Path(sys.argv[1])
def in_python():
    creators = [registry.get_creator(spec.name, "1", "q2export") for spec in opspec.ALL]
    assert None not in creators
    return [isinstance(creator, GenericCreator) for creator in creators]

register(trt)  # as a build does, in the same process
assert all(in_python())
native.register_to_run(trt)
print("python" if all(in_python()) else "mixed" if any(in_python()) else "c++")
native.register_to_run(trt)  # the next engine
register(trt)  # the next build
print("python" if all(in_python()) else "mixed" if any(in_python()) else "c++")
native.declared = lambda trt, spec: [SimpleNamespace(name="new", type=None)]
try:
    native.register_to_run(trt)
except MissingDependencyError as error:
    print(error)
"""


def test_engines_run_on_the_plugins_in_cpp_where_they_are_built(plugins: Path) -> None:
    done = run_script(TO_RUN, plugins)
    assert done.returncode == 0, done.stderr
    first, again, refusal = done.stdout.splitlines()
    assert first == again == "c++"
    assert (
        "has attributes attention_factor for Q2RotaryEmbedding, expected attributes new; rebuild" in refusal
    )


def test_without_them_they_run_on_those_in_python(tmp_path: Path) -> None:
    done = run_script(TO_RUN, tmp_path / "absent.so")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["python", "python"]


def test_a_library_that_does_not_load_is_told(tmp_path: Path) -> None:
    (tmp_path / "libq2export_plugins.so").write_bytes(b"no library")
    done = run_script(TO_RUN, tmp_path / "libq2export_plugins.so")
    assert done.returncode == 1
    assert "plugins in C++ cannot be loaded" in done.stderr and "kernel_build tensorrt" in done.stderr
