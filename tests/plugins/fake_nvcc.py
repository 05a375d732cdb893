"""A stand-in for nvcc that understands the options of the kernels' build, and writes text for code.

Every call is appended to ``nvcc.log`` beside the script. A source with the line ``#error`` does not compile.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

SCRIPT = """\
#!/bin/sh
exec {python} {module} {codes} "$0" "$@"
"""


def install(folder: Path, codes: str = "80,86,89,90,100,120") -> Path:
    """Write the script as ``folder/bin/nvcc``, for a compiler that knows these compute capabilities."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(SCRIPT.format(python=sys.executable, module=Path(__file__), codes=codes))
    path.chmod(0o755)
    return path


def calls(nvcc: Path) -> list[str]:
    """The sources that were compiled so far, and "link" for each time a library was linked."""
    log = nvcc.with_suffix(".log")
    return log.read_text().split() if log.is_file() else []


def main(codes: str, script: str, *options: str) -> int:
    """Act on a command line of nvcc."""
    if options == ("--version",):
        print("Cuda compilation tools, release 13.0, V13.0.88")
        return 0
    if options == ("--list-gpu-code",):
        print(*(f"sm_{code}" for code in codes.split(",")), sep="\n")
        return 0
    output = Path(options[options.index("-o") + 1])
    sources = [
        Path(each) for each in options if each.endswith((".cu", ".cpp", ".o")) and Path(each) != output
    ]
    with open(f"{script}.log", "a") as log:
        print(sources[0].stem if "-c" in options else "link", file=log)
    includes = [(each, re.findall(r'#include "(.*)"', each.read_text())) for each in sources]
    named = [source.parent / name for source, names in includes for name in names]
    headers = [each for each in named if each.is_file()]
    text = "".join(each.read_text() for each in (*sources, *headers))
    if "#error" in text:
        print(f"{sources[0]}(1): error: #error directive", file=sys.stderr)
        return 2
    if "-MF" in options:
        rule = " \\\n  ".join(map(str, (*sources, *headers)))
        Path(options[options.index("-MF") + 1]).write_text(f"{output} : {rule}\n")
    output.write_text(f"{' '.join(each for each in options if 'gencode' in each)}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
