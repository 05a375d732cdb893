"""Packaged profiles: one YAML file each, read by :mod:`q2export.contracts.profile`."""
