"""Decoding that refuses what it does not know: JSON, YAML and frozen dataclasses."""
