"""Backends: what runs a built engine. Each implements ``base.Backend``."""
