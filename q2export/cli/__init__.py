"""The command line: one file per command; :mod:`.main` is the entry point."""
