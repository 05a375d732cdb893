"""The kernels of the host mapping in place of a GPU's, for dry runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def host_kernels(wanted: bool) -> Iterator[None]:
    """Have the kernels' functions, and the operator in place, run on CPU tensors, if ``wanted``."""
    if not wanted:
        yield
        return
    from q2export.contracts import opspec
    from q2export.plugins.tensorrt import kernels
    from q2export.plugins.tensorrt.torch_ops import implementation, in_place_schema
    from tests.host_cuda.compiling import compile_for_host

    spec, usual = opspec.ROTARY_ATTENTION, kernels.LIBRARY
    library = torch.library.Library(opspec.DOMAIN, "FRAGMENT")
    library.define(in_place_schema(spec))
    library.impl(f"{spec.torch_name}_", implementation(spec, in_place=True), "CPU")
    kernels.LIBRARY = compile_for_host("libq2export_kernels.so")
    try:
        yield
    finally:
        kernels.LIBRARY = usual
        library._destroy()
