"""Initializers made of several tensors of the checkpoint, for kernels that want them as one."""

from __future__ import annotations

from dataclasses import dataclass

META_KEY = "q2export.stack"
"""Under this key of ``ir.Value.meta`` a pass leaves the :class:`Stack` of an initializer it made."""


@dataclass(frozen=True)
class Stack:
    """How an initializer is put together; only for weights that are converted, and so written anew, anyway.

    Attributes:
        tensors: names in the checkpoint, in order.
        interleaved: the tensors are pairs, and the rows of each pair alternate; otherwise one follows the
            other.
    """

    tensors: tuple[str, ...]
    interleaved: bool = False
