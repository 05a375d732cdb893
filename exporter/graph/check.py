"""onnx.checker over a graph whose weights lie outside it."""

from __future__ import annotations

import onnx

from q2export.errors import ExportError


def check_structure(model: onnx.ModelProto) -> None:
    """Run ``onnx.checker`` on everything but the bytes of external data.

    The checker would open external files, and refuses hard links. Initializers with external data are
    therefore checked as graph inputs of the same name, type and shape; where their bytes lie is checked by
    ``bind``.

    Raises:
        ExportError: with the checker's message; it is a fault of the exporter.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    graph = stripped.graph
    external = [tensor for tensor in graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    inline = [tensor for tensor in graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    del graph.initializer[:]
    graph.initializer.extend(inline)
    for tensor in external:
        graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    try:
        onnx.checker.check_model(stripped)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx.checker refuses the graph: {error}; please report this") from error
