"""Each small pass: how often it matched, then the numbers, and what it must leave alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from q2export.errors import ExportError
from q2export.exporter.passes.base import Pass, PassResult, nodes_of
from q2export.exporter.passes.merge_reshapes import MergeReshapes
from q2export.exporter.passes.onnxruntime.fuse_swiglu import FuseSwiGLU
from q2export.exporter.passes.remove_unused import RemoveUnused
from tests.helpers.onnx_graphs import check_same, normal, op_types, parse, run

# MergeReshapes


def test_merge_reshapes_between_two_layers() -> None:
    model = parse("""g (float[tokens,6] x, int64[3] shape) => (float[a,b] y) {
        "layer/rows" = Neg (x)
        layer = Reshape ("layer/rows", shape)
        flat = Constant <value_ints = [-1, 6]> ()
        "next/rows" = Reshape (layer, flat)
        y = Abs ("next/rows") }""")
    for node in model.graph:
        for value in node.outputs:
            value.shape = value.shape or ir.Shape(["t", 6])
    feed = {"x": normal(6, 6), "shape": np.array([2, 3, 6])}
    before = run(model, feed)
    assert MergeReshapes()(model).matched == 1
    assert "Reshape" not in op_types(model)
    check_same(before, run(model, feed))
    assert nodes_of(model.graph, "Neg")[0].outputs[0].name == "layer"  # the path of the module


def test_merge_reshapes_keeps_what_else_is_read() -> None:
    """The value between is read elsewhere and stays; the second reshape no longer waits for it."""
    model = parse("""g (float[a,b,4] x) => (float[c,2] y, float[d,4] z) {
        first = Constant <value_ints = [-1, 4]> ()
        rows = Reshape (x, first)
        second = Constant <value_ints = [-1, 2]> ()
        y = Reshape (rows, second)
        z = Neg (rows) }""")
    feed = {"x": normal(2, 3, 4)}
    before = run(model, feed)
    assert MergeReshapes()(model).matched == 1
    assert Counter(op_types(model))["Reshape"] == 2
    assert nodes_of(model.graph, "Reshape")[1].inputs[0].name == "x"
    check_same(before, run(model, feed))


@pytest.mark.parametrize(("attribute", "refused"), [("", 1), ("<allowzero = 1>", 0)])
def test_merge_reshapes_refuses_copied_sizes(attribute: str, refused: int) -> None:
    """A zero means "as in the input", which would then be another one."""
    model = parse(f"""g (float[2,3,4] x) => (float y)
        <int64[2] rows = {{6, 4}}, int64[3] again = {{0, 2, 2}}> {{
        between = Reshape (x, rows)
        ["outer"] y = Reshape {attribute} (between, again) }}""")
    result = MergeReshapes()(model)
    assert (result.matched, len(result.refused)) == (1 - refused, refused)
    if refused:
        assert result.refused == ["outer: its shape copies sizes of its input"]
        assert run(model, {"x": normal(2, 3, 4)})["y"].shape == (6, 2, 2)


# Small fusions


def test_fuse_swiglu() -> None:
    """``gate * sigmoid(gate) * up`` in any order; other gates, other shapes, and what is read twice stay."""
    model = parse("""g (float[3,4] x, float[3,4] u, float[3,1] column)
        => (float[3,4] a, float[3,4] b, float[3,4] c, float[3,4] d, float[3,4] e) {
        s0 = Sigmoid (x)  m0 = Mul (x, s0)  ["first"] a = Mul (m0, u)
        s1 = Sigmoid (u)  m1 = Mul (s1, u)  ["second"] b = Mul (x, m1)
        s2 = Sigmoid (x)  m2 = Mul (s2, u)  c = Mul (m2, x)
        s3 = Sigmoid (x)  ["third"] m3 = Mul (s3, x)  d = Mul (m3, column)
        s4 = Sigmoid (x)  m4 = Mul (s4, x)  e = Mul (m4, m4) }""")
    feed = {"x": 3 * normal(3, 4), "u": 3 * normal(3, 4, seed=1), "column": normal(3, 1)}
    before = run(model, feed)
    result = FuseSwiGLU()(model)
    assert (result.matched, len(result.refused)) == (2, 2)
    assert result.refused[0] == "third: it is not multiplied by a tensor of its shape"
    assert Counter(op_types(model)) == {"Q2SwiGLU": 2, "Sigmoid": 3, "Mul": 6}
    check_same(before, run(model, feed))


def test_remove_unused() -> None:
    model = parse("""g (float[2] x, float[2] unread) => (float[2] y)
        <float[2] w = {1, 2}, float[2] dead = {3, 4}> {
        y = Add (x, w)  a = Add (x, dead)  b = Neg (a) }""")
    assert RemoveUnused()(model).matched == 2
    assert op_types(model) == ["Add"]
    assert list(model.graph.initializers) == ["w"]
    assert [value.name for value in model.graph.inputs] == ["x", "unread"]


# The base class


def test_postcondition_is_checked() -> None:
    class Nothing(Pass):
        def rewrite(self, model: ir.Model, result: PassResult) -> None:
            result.refused.append("n: no reason")

        def ensures(self, model: ir.Model) -> None:
            raise ExportError("not done")

    with pytest.raises(ExportError, match=r"^not done; n: no reason$"):
        Nothing()(parse("g (float[2] x) => (float[2] y) { y = Neg (x) }"))
