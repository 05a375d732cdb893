"""A program that opens the packages named on its standard input and generates a few tokens with each.

One line of JSON per package: its text, or the class and message of the error. Every package may take
``CPU_SECONDS`` of processor time; the process ends by a signal where one takes more, and all share
``MEMORY_BYTES`` of address space.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback

MEMORY_BYTES = 6 << 30  # a process with ONNX Runtime and its thread pools maps 2 GiB before it does anything
CPU_SECONDS = 20


def answer(folder: str) -> dict[str, str]:
    """Outcome of one package."""
    import q2export

    try:
        engine = q2export.load(folder, threads=1)
        return {"text": engine.generate("Once", max_new_tokens=4, do_sample=False).text or ""}
    except q2export.Q2ExportError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:  # noqa: BLE001  (the test reports it)
        return {"error": "not one of ours", "message": traceback.format_exc()}


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(answer(line.rstrip("\n"))), file=answers, flush=True)


if __name__ == "__main__":
    main()
