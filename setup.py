"""Maps the repository's folders to import names, so that nothing generic lands in site-packages.

``driver/`` is the root package ``q2export``; the other rooms are its sub-packages. All metadata is in
``pyproject.toml``.
"""

from __future__ import annotations

from setuptools import find_packages, setup

ROOMS = {
    "q2export": "driver",
    "q2export.exporter": "exporter",
    "q2export.plugins": "plugins",
    "q2export.profiles": "profiles",
    "q2export.runtime": "runtime",
}


def packages() -> list[str]:
    """Every package of the wheel, by import name."""
    found = []
    for name, folder in ROOMS.items():
        found.append(name)
        found += [f"{name}.{sub}" for sub in find_packages(folder)]
    return found


setup(packages=packages(), package_dir=ROOMS)
