"""libq2export against the Python runtime: the loop's own cost per token, and a cold start to a token.

``python -m benchmarks.cpp TINY_PACKAGE PACKAGE``: of the first, engine and loop are measured in one process;
of the second, fresh processes of both languages by turns open it, run a prompt of 8 tokens and print one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from q2export.plugins.kernel_build import available_cores, engine_library
from q2export.runtime.cpp import cpp_libraries

_ROOT = Path(__file__).resolve().parents[1]
_CPP = _ROOT / "runtime" / "cpp"
_PROMPT = (395, 86, 77, 82, 5, 6, 7, 8)
_TOKENS, _REPEATS = 500, 15

_PYTHON = """
import sys, q2export
engine = q2export.load(sys.argv[1], threads=2)
print(engine.generate([int(each) for each in sys.argv[2:]], max_new_tokens=1, do_sample=False).token_ids[0])
"""

_CPP_SOURCE = """
#include <cstdlib>
#include <iostream>
#include "q2export/q2export.hpp"
int main(int count, char** words)
{
    q2export::Engine::OpenOptions options;
    options.threads = 2;
    q2export::Engine const engine(words[1], options);
    std::vector<int64_t> prompt;
    for (int i = 2; i < count; ++i) { prompt.push_back(std::atoll(words[i])); }
    q2export::GenerationOptions greedy;
    greedy.max_new_tokens = 1;
    greedy.do_sample = false;
    std::cout << engine.generate(prompt, greedy).token_ids[0] << std::endl;
}
"""


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiny", type=Path, help="a package whose steps cost next to nothing")
    parser.add_argument("package", type=Path, help="the package that is opened cold")
    parser.add_argument("--starts", type=int, default=5, help="of each language")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "loop": _loop(arguments.tiny, Path(folder)),
            "first token, seconds": _first_token(arguments.package, arguments.starts, Path(folder)),
            "library bytes": (Path(cpp_libraries().prefix) / "lib" / "libq2export.so").stat().st_size,
        }
    print(json.dumps(found, indent=2))


def _environment() -> dict[str, str]:
    found = cpp_libraries()
    if found.onnxruntime is None or found.ops is None:
        sys.exit(f"error: ONNX Runtime and the CPU kernels are needed, found {found}")
    return {**os.environ, "Q2EXPORT_ONNXRUNTIME": found.onnxruntime, "Q2EXPORT_OPS": found.ops}


def _loop(package: Path, folder: Path) -> dict[str, float]:
    library = engine_library({**os.environ, "Q2EXPORT_CPP": ""}, folder / "build", _CPP)
    source, program = Path(__file__).with_name("cpp_loop.cpp"), folder / "cpp_loop"
    whole = library.sources
    command = [str(library.compiler), *library.flags(source), *map(str, whole), str(source)]
    _run([*command, "-o", str(program), "-ldl", "-pthread"])
    said = _run([str(program), str(package), str(_TOKENS), str(_REPEATS)])
    greedy, sampled, engine = (float(word) for word in said.split())
    return {
        "engine, us per token": engine,
        "loop when greedy, us per token": greedy - engine,
        "loop when sampled from 50, us per token": sampled - engine,
    }


def _first_token(package: Path, starts: int, folder: Path) -> dict[str, object]:
    prefix = cpp_libraries().prefix
    source, program = folder / "first.cpp", folder / "first"
    source.write_text(_CPP_SOURCE, encoding="utf-8")
    flags = ["-std=c++17", "-O2", f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"]
    _run(["g++", *flags, str(source), "-o", str(program), "-lq2export"])
    words = [str(package), *map(str, _PROMPT)]
    commands = {"python": [sys.executable, "-c", _PYTHON, *words], "cpp": [str(program), *words]}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    tokens = set()
    for number in range(starts + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            tokens.add(_run(command).strip())
            if number > 0:  # the first reads the files from disk, for both
                seconds[name].append(time.perf_counter() - started)
    if len(tokens) != 1:
        sys.exit(f"error: the languages differ: {tokens}")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {**seconds, "python / cpp": medians["python"] / medians["cpp"], "cores": available_cores()}


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
