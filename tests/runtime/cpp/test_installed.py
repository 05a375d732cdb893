"""An installed library: found by CMake and pkg-config, used by the examples, part of the wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import q2export
from q2export.plugins.kernel_build import CPU_LIBRARY, EngineLibrary
from q2export.runtime.engine import Engine
from tests.host_cuda.compiling import ROOT

EXAMPLES = ROOT / "examples" / "cpp"
PROMPT = [395, 86, 77, 82]


@pytest.fixture
def environment(onnxruntime_library: Path) -> Mapping[str, str]:
    """Where a program outside the Python installation finds the libraries."""
    places = {"Q2EXPORT_ONNXRUNTIME": str(onnxruntime_library), "Q2EXPORT_OPS": str(CPU_LIBRARY)}
    return {**os.environ, **places}


@pytest.fixture
def python(qwen2_tiny_package: Path) -> Iterator[Engine]:
    with q2export.load(qwen2_tiny_package, threads=1) as engine:
        yield engine


def run(command: list[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def examples(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, built by CMake from a copy of their folder alone."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    folder = tmp_path_factory.mktemp("empty")
    moved = tmp_path_factory.mktemp("moved") / "prefix"  # a prefix can be moved
    shutil.copytree(prefix, moved)
    shutil.copytree(EXAMPLES, folder / "source")
    run(["cmake", "-S", "source", "-B", "build", f"-DCMAKE_PREFIX_PATH={moved}"], folder)
    run(["cmake", "--build", "build", "--parallel", "2"], folder)
    return folder / "build"


def test_the_examples_generate_what_python_does(
    examples: Path, environment: Mapping[str, str], python: Engine, qwen2_tiny_package: Path
) -> None:
    ids = [str(token) for token in PROMPT]
    for arguments, options in (
        (["minimal", qwen2_tiny_package, *ids], {"max_new_tokens": 16, "do_sample": False}),
        (
            [
                "generate",
                qwen2_tiny_package,
                "--max-new-tokens",
                "9",
                "--seed",
                "4",
                "--temperature",
                "1.2",
                *ids,
            ],
            {"max_new_tokens": 9, "seed": 4, "temperature": 1.2},
        ),
    ):
        program, *rest = arguments
        done = subprocess.run([examples / program, *rest], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert tuple(map(int, done.stdout.split())) == python.generate(PROMPT, **options).token_ids
    for program in ("minimal", "generate"):
        done = subprocess.run(
            [examples / program, "/nothing", "1"], capture_output=True, text=True, env=environment
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: /nothing is not an engine package")


def test_the_service_serves_many_at_once(
    examples: Path, environment: Mapping[str, str], python: Engine, qwen2_tiny_package: Path
) -> None:
    if not (examples / "service").is_file():
        pytest.skip("needs httplib.h (Debian: libcpp-httplib-dev)")
    command = [examples / "service", qwen2_tiny_package, "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        (port,) = re.findall(r"port (\d+)", process.stdout.readline())

        def ask(number: int) -> tuple[int, ...]:
            url = f"http://127.0.0.1:{port}/complete?ids=395,86,{number}&max_new_tokens=15&seed={number}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                return tuple(map(int, answer.read().split()))

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, range(48)))
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(1536)
        # One that goes away leaves the others alone.
        urllib.request.urlopen(
            f"http://127.0.0.1:{port}/complete?ids=1&max_new_tokens=900", timeout=60
        ).close()
        assert ask(3) == found[3]
        process.terminate()
        assert process.wait(timeout=60) == 0
    for number in (0, 17, 47):
        expected = python.generate([395, 86, number], max_new_tokens=15, seed=number, do_sample=True)
        assert found[number] == expected.token_ids


def test_cmake_installs_the_same_prefix(engine_build: EngineLibrary, prefix: Path, tmp_path: Path) -> None:
    """All but the library itself, whose compilation is not repeated: an empty one stands for it."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    run(["cmake", "-S", engine_build.cpp, "-B", tmp_path / "build", "-DCMAKE_INSTALL_LIBDIR=lib"])
    (tmp_path / "build" / "libq2export.so").touch()
    run(["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed"])
    for found, expected in ((tmp_path / "installed", prefix), (prefix, tmp_path / "installed")):
        for path in expected.rglob("*"):
            same = found / path.relative_to(expected)
            assert same.exists()
            if path.is_file() and path.suffix != ".so":
                assert same.read_text() == path.read_text()


def test_pkg_config_finds_it(prefix: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}

    def asked(*options: str) -> str:
        command = ["pkg-config", *options, "q2export"]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

    *folders, library = asked("--cflags", "--libs").split()
    assert library == "-lq2export"
    expected = {str(prefix / "include"), str(prefix / "lib")}
    assert {os.path.realpath(folder[2:]) for folder in folders} == expected
    assert asked("--modversion").strip() == q2export.__version__


def test_the_library_is_small_and_needs_little(prefix: Path) -> None:
    library = prefix / "lib" / "libq2export.so"
    assert library.stat().st_size < 2_000_000
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    needed = set(re.findall(r"NEEDED.*\[(.*?)\.so", run(["readelf", "-d", library])))
    assert needed <= {
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libdl",
        "libpthread",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }
    names = re.findall(
        r"(?:FUNC|OBJECT)\s+GLOBAL\s+DEFAULT\s+\d+ (\w+)", run(["readelf", "-Ws", "--dyn-syms", library])
    )
    header = (prefix / "include" / "q2export" / "q2export.h").read_text()
    assert set(names) == set(re.findall(r"\b(q2e_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))


def wheel_source(repository: Path, folder: Path) -> Path:
    """What a wheel is built from, with a stand-in for the sources: what is tested is what becomes of them."""
    (folder / "q2export").mkdir(parents=True)
    for room in ("plugins", "runtime"):
        ignored = shutil.ignore_patterns("__pycache__", "lib", "prefix", "kernels")
        shutil.copytree(repository / room, folder / room, ignore=ignored)
        (folder / "q2export" / room).symlink_to(f"../{room}")
    for name in ("__init__.py", "version.py", "errors.py"):
        shutil.copy(repository / "q2export" / name, folder / "q2export")
    for room in ("cli", "strict", "contracts"):
        shutil.copytree(repository / "q2export" / room, folder / "q2export" / room)
    for name in ("LICENSE", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(repository / name, folder)
    sources = folder / "runtime" / "cpp" / "src"
    for path in sources.rglob("*.cpp"):
        path.unlink()
    (sources / "stand_in.cpp").write_text('extern "C" int q2e_stand_in() { return 1; }\n')
    return folder


def test_the_wheel_has_the_prefix(repository: Path, prefix: Path, tmp_path: Path) -> None:
    source = wheel_source(repository, tmp_path / "source")
    wanted = {
        "Q2EXPORT_CUDA_ARCHITECTURES": "none",
        "Q2EXPORT_CPU_KERNELS": "none",
        "Q2EXPORT_CPP": "required",
    }
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True, env={**os.environ, **wanted})
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux_" in wheel.name
    site, below = tmp_path / "site", "q2export/runtime/cpp/"
    with zipfile.ZipFile(wheel) as archive:
        found = {name.removeprefix(below) for name in archive.namelist() if name.startswith(below)}
        archive.extractall(site)
    files = {f"prefix/{path.relative_to(prefix)}" for path in prefix.rglob("*") if path.is_file()}
    modules = {path.name for path in (source / "runtime" / "cpp").glob("*.py")}
    assert found == {*files, *modules, "libq2export.txt"}

    def ask(*options: str) -> subprocess.CompletedProcess[str]:
        script = f"from q2export.cli.main import main; raise SystemExit(main(['cpp', *{options!r}]))"
        path = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, capture_output=True, text=True, env=path, cwd=tmp_path)

    assert ask("--prefix").stdout == f"{site / below / 'prefix'}\n"
    assert json.loads(ask("--json").stdout)["onnxruntime"].startswith("/")
    (site / below / "prefix" / "lib" / "libq2export.so").unlink()
    done = ask("--prefix")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: " in done.stderr and "where there is a C++17 compiler" in done.stderr
