"""Torch operators derived from the op specification.

:func:`define` builds a ``torch.library`` operator from an :class:`~q2export.contracts.opspec.OpSpec`: the
schema comes from the specification; the caller gives a CPU reference and a fake (shape) implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from q2export.contracts.opspec import DOMAIN, OpSpec

_LIBRARY = torch.library.Library(DOMAIN, "DEF")
_ATTRIBUTE_TYPES = {"int": "int", "float": "float"}


def torch_schema(spec: OpSpec) -> str:
    """Return the torch schema of ``spec``; repeated inputs become tensor lists, e.g. ``Tensor[] gate``."""
    arguments = [f"Tensor {tensor.name}" for tensor in spec.inputs]
    arguments += [f"Tensor? {tensor.name}" for tensor in spec.optional]
    arguments += [f"Tensor[] {tensor.name}" for tensor in spec.repeated]
    arguments += [f"{_ATTRIBUTE_TYPES[attribute.type]} {attribute.name}" for attribute in spec.attributes]
    arguments += [f"int {attribute.name}=0" for attribute in spec.cpu_attributes]
    results = ", ".join(["Tensor"] * len(spec.outputs))
    result = results if len(spec.outputs) == 1 else f"({results})"
    return f"{spec.torch_name}({', '.join(arguments)}) -> {result}"


def define(
    spec: OpSpec, reference: Callable[..., Any], fake: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Register the operator ``q2export::<torch_name>`` and return it.

    Args:
        spec: the specification.
        reference: CPU implementation with the schema's arguments, in order; the op's meaning in code.
        fake: what tracing calls instead; None where the sizes of the outputs are sizes of inputs.
    """
    _LIBRARY.define(torch_schema(spec))
    _LIBRARY.impl(spec.torch_name, reference, "CPU")
    torch.library.register_fake(f"{DOMAIN}::{spec.torch_name}", fake or _fake(spec), lib=_LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, DOMAIN), spec.torch_name).default
    return operator


def _fake(spec: OpSpec) -> Callable[..., Any]:
    """What tracing calls instead: outputs of the right shapes and types, nothing computed."""

    def run(*arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Empty outputs of the sizes that the inputs' symbols have."""
        tensors = arguments[: len(spec.inputs)]
        sizes: dict[str, int] = {}
        for each, tensor in zip(spec.inputs, tensors, strict=True):
            for symbol, size in zip(each.shape, tensor.shape, strict=True):
                sizes.setdefault(symbol, size)
        dtypes = {each.element_type: tensor.dtype for each, tensor in zip(spec.inputs, tensors, strict=True)}
        outputs = tuple(
            tensors[0].new_empty([sizes[each] for each in out.shape], dtype=dtypes[out.element_type])
            for out in spec.outputs
        )
        return outputs if len(outputs) > 1 else outputs[0]

    return run
