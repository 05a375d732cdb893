"""What the exit code of the program says."""

OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141
"""Fine; user error or failed check; usage; Ctrl-C; the reader of stdout went away."""
