"""What the tests of the exporter share."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def traces_are_made_once() -> Iterator[None]:
    """Equal configurations are traced once for all tests: most of the time of a small export is tracing."""
    from q2export.exporter.graph import emit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emit, "trace", functools.cache(emit.trace))
        yield
