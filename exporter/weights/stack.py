"""Initializers that are not one tensor of the checkpoint as it lies there, but made of one or several."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

META_KEY = "q2export.stack"
"""Under this key of ``ir.Value.meta`` a pass leaves the :class:`Stack` of an initializer it made."""


class Form(Enum):
    """How the tensors of a :class:`Stack` become the data of its initializer.

    ``VALUES`` and ``BYTES`` need no new data where the tensors follow each other in one file already.
    """

    VALUES = "floating-point values, one tensor after the other, converted where the types differ"
    BYTES = "bytes as they are, one tensor after the other, seen as another type and shape"
    SIGNED_CODES = "as BYTES, but codes of weights become signed: the highest bit of each is flipped"
    UNPADDED_NIBBLES = (
        "as BYTES, but rows of an odd number of nibbles lose the one that fills their last byte"
    )


@dataclass(frozen=True)
class Stack:
    """How an initializer is put together.

    Attributes:
        tensors: names in the checkpoint, in order.
        form: what is done to them.
    """

    tensors: tuple[str, ...]
    form: Form = Form.VALUES
