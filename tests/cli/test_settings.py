from __future__ import annotations

import click
import pytest

from q2export.cli.settings import overrides_of
from q2export.errors import ProfileError


def test_values_are_read_as_in_a_profile_file() -> None:
    settings = ["capacity.max=8192", "parity.max_abs_logit_error=1e-4", "gpu=a=b", "workspace_mib=null",
                "compute_capability=8.0", "quantization.keep=[a, '*']"]  # fmt: skip
    assert overrides_of(settings, {}) == {
        "capacity.max": 8192,
        "parity.max_abs_logit_error": 1e-4,
        "gpu": "a=b",
        "workspace_mib": None,
        "compute_capability": "8.0",
        "quantization.keep": ["a", "*"],
    }
    assert overrides_of(["compute_capability=null"], {}) == {"compute_capability": None}
    assert overrides_of([], {"builder": ("--builder", "rtx"), "dtype": ("--dtype", None)}) == {
        "builder": "rtx"
    }


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["threads"], click.UsageError, "--set threads: expected KEY=VALUE, such as"),
        (["=3"], click.UsageError, "expected KEY=VALUE"),
        (["threads=["], ProfileError, r"--set threads=\[, line 1"),
        (["threads=1", "threads=2"], click.UsageError, "--set threads is given twice"),
        (["builder=rtx"], click.UsageError, "--builder and --set builder are the same"),
    ],
)
def test_refused(settings: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        overrides_of(settings, {"builder": ("--builder", "tensorrt")})
