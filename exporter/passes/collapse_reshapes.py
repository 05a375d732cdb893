"""Drop the pair of reshapes between two layers.

A traced layer takes and returns ``[batch, sequence, hidden]`` and works on ``[tokens, hidden]``; between layers that
leaves ``Reshape(Reshape(x, [batch, sequence, hidden]), [-1, hidden])``, which is ``x``.
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass, PassResult, input_of, nodes_of


class CollapseReshapes(Pass):
    """``Reshape(Reshape(x))`` of rank 2 -> 3 -> 2 with one last dimension becomes ``x``.

    ``x`` takes the name of the three-dimensional value, which is the layer's.
    """

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every pair."""
        for outer in nodes_of(model.graph, "Reshape"):
            inner_value = input_of(outer, 0)
            inner = inner_value.producer()
            if inner is None or inner.op_type != "Reshape":
                continue
            source = input_of(inner, 0)
            if not _same_rows(source, outer.outputs[0]):
                result.refused.append(f"{outer.name}: shapes {source.shape} and {outer.outputs[0].shape} differ")
                continue
            ir.convenience.replace_all_uses_with(outer.outputs[0], source)
            model.graph.remove(outer, safe=True)
            if not inner_value.consumers() and not inner_value.is_graph_output():
                name = inner_value.name
                inner_value.name = None
                model.graph.remove(inner, safe=True)
                source.name = name
            result.matched += 1


def _same_rows(first: ir.Value, second: ir.Value) -> bool:
    """Whether both are matrices with the same number of columns (rows follow from the element count)."""
    a, b = first.shape, second.shape
    return a is not None and b is not None and len(a) == len(b) == 2 and isinstance(a[1], int) and a[1] == b[1]
