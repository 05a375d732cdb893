"""The workspace an engine reserves for each op: fixed by the shapes, so that any machine builds it alike.

The kernels need not be at hand when an engine is built. What they may ask for is bounded here; asking
for more is refused before a launch, and the tests of the kernels hold them to it.
"""

from __future__ import annotations

from collections.abc import Mapping

from q2export.contracts import opspec
from q2export.plugins.tensorrt.fields import Attributes

ALIGNMENT = 256
"""``Q2EXPORT_WORKSPACE_ALIGNMENT``. TensorRT does not say how it aligns the workspace of a plugin."""

_FLOAT32 = 4
_SLACK = 16 * ALIGNMENT  # of the buffers a workspace is divided into
_ROUTING = 64  # bytes for each pair of token and expert: logit, rank, position, weight
_SPLIT_BLOCKS = 1024  # thread blocks that leave partial results: more work than that needs no splitting
_SPLIT_TOKENS = 16  # new tokens up to which the cache is split
_SPLIT_ROWS = 64  # query rows, (head of the group, token), of one such block


def aligned(address: int) -> int:
    """The first address from ``address`` on that the kernels take for a workspace."""
    return address + -address % ALIGNMENT


def reserved_bytes(spec: opspec.OpSpec, sizes: Mapping[str, int], attributes: Attributes) -> int:
    """Return the bytes an engine sets aside; what aligning them takes, :data:`ALIGNMENT`, comes on top.

    Args:
        spec: the op.
        sizes: value of every symbol of its shapes, the largest of the optimization profile.
        attributes: of the node.
    """
    if spec.name in (opspec.MOE.name, opspec.QUANTIZED_MOE.name):
        tokens, pairs = sizes["T"], sizes["T"] * int(attributes["top_k"])
        expert_rows = pairs * (2 * sizes["I"] + sizes["H"]) * _FLOAT32  # gate, up and down of each pair
        return expert_rows + (tokens * sizes["E"] + pairs + sizes["E"]) * _ROUTING + _SLACK
    if spec.name in (opspec.ATTENTION.name, opspec.ROTARY_ATTENTION.name):
        rows = sizes["B"] * sizes["S"]
        rotated = rows * (sizes["Hq"] + sizes["Hkv"]) * sizes["D"] * _FLOAT32
        # Partial outputs with maximum and sum, and a counter each, where few rows are spread over the device.
        query_rows = sizes["Hq"] // sizes["Hkv"] * min(sizes["S"], _SPLIT_TOKENS)
        partials = min(query_rows, _SPLIT_ROWS) * (sizes["D"] + 2) * _FLOAT32
        return rotated + _SPLIT_BLOCKS * (partials + _FLOAT32) + _SLACK
    return 0
