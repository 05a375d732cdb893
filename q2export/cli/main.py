"""Where the program begins and ends. Little is imported until Ctrl-C and closed streams are taken care of."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from q2export.cli.exit_codes import BROKEN_PIPE, INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line in this process and return its exit code; errors are printed to stderr.

    Args:
        argv: the arguments without the program's name; None takes those of the process.
    """
    try:
        from q2export.cli.program import run

        return run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        return BROKEN_PIPE
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        return INTERRUPTED


def entry_point() -> None:
    """Run the command line of the process and exit."""
    try:
        from q2export.cli.streams import finish, prepare

        prepare()
        code = finish(main())
    except KeyboardInterrupt:  # before there was anything to answer it
        os.write(2, b"\ninterrupted\n")
        code = INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # from here on there is nothing left to tell
    sys.exit(code)
