"""``python -m q2export.plugins.kernel_build``: build the kernels where the package looks for them."""

from __future__ import annotations

import os
import sys

from .compiler import KernelBuildError, plan
from .library import CSRC, LIBRARY, RECORD, KernelLibrary, available_cores


def main() -> int:
    """Build, and say what was built; 1 where that fails."""
    try:
        if not CSRC.is_dir():
            raise KernelBuildError(f"{CSRC} is absent: run this in the source tree")
        chosen = plan(os.environ)
        library = KernelLibrary(chosen.compiler, chosen.architectures, CSRC.parents[1] / "build" / "kernels")
        library.build(LIBRARY, available_cores())
        RECORD.write_text(f"{chosen}\n", encoding="utf-8")
    except KernelBuildError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{LIBRARY}: {chosen}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
