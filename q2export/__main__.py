"""``python -m q2export``: the command line."""

from q2export.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
