from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "tokenizers", "jinja2", "q2export.exporter")


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import q2export.runtime", (*HEAVY, "numpy")),
        ("import q2export.runtime.engine", HEAVY),
    ],
)
def test_importing_the_runtime_is_light(statement: str, absent: tuple[str, ...]) -> None:
    loaded = loaded_after(statement)
    assert loaded.isdisjoint(absent), loaded & set(absent)
