"""The version of q2export; nothing else, so that any module and the build can read it."""

__version__ = "0.1.0"
