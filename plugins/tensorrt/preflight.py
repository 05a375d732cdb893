"""Check the plugin nodes of an ONNX file before TensorRT parses, cutting and dropping attributes silently."""

from __future__ import annotations

from pathlib import Path

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.plugins.tensorrt.fields import check_attributes


def check_onnx(path: Path) -> int:
    """Check every node that is to become a plugin; no weight is read.

    Args:
        path: the ONNX file.

    Returns:
        Their number: as many layers of the parsed network must be plugins.

    Raises:
        ExportError: an attribute is wrong, or the node does not name our plugin, so that another definition
            of the op would be taken.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found = 0
    for node in model.graph.node:
        spec = opspec.BY_NAME.get(node.op_type)
        if spec is None or node.domain != opspec.DOMAIN:
            continue
        values = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        check_attributes(spec, values, node.name)
        for name, expected in (
            ("plugin_version", opspec.PLUGIN_VERSION),
            ("plugin_namespace", opspec.PLUGIN_NAMESPACE),
        ):
            if values.get(name) != expected.encode():
                raise ExportError(
                    f"{path}: node {node.name!r} ({spec.name}): attribute {name!r} must be {expected!r}, "
                    f"found {values.get(name)!r}; export the model again"
                )
        found += 1
    return found
