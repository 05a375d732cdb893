"""Write ``csrc/tensorrt/common/spec.inc``, the C++ tables of the op specification.

Run ``python -m q2export.plugins.generate_spec`` after changing ``q2export/contracts/opspec.py``; a test
compares the file with what this module would write.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from q2export.contracts import opspec

PATH = Path(__file__).resolve().parent / "csrc" / "tensorrt" / "common" / "spec.inc"

_HEADER = """\
// Generated from q2export/contracts/opspec.py by python -m q2export.plugins.generate_spec. Not to be edited.
"""


def spec_inc() -> str:
    """Return the contents of ``spec.inc``."""
    names = _symbol_names()
    symbols = "".join(f"    {_symbol(each)},\n" for each in names)
    texts = "".join(f'    "{each}",\n' for each in names)
    return "\n".join(
        (
            _HEADER,
            f'constexpr char kPluginNamespace[] = "{opspec.PLUGIN_NAMESPACE}";',
            f'constexpr char kPluginVersion[] = "{opspec.PLUGIN_VERSION}";\n',
            f"enum class Symbol : int32_t\n{{\n{symbols}}};\n",
            f"constexpr char const* kSymbolNames[] = {{\n{texts}}};\n",
            *(_op(spec) for spec in opspec.ALL),
        )
    )


def _symbol_names() -> tuple[str, ...]:
    """Every symbol of every shape, once, in order of appearance."""
    tensors = (each for spec in opspec.ALL for each in (*spec.inputs, *spec.repeated, *spec.outputs))
    return tuple(dict.fromkeys(symbol for tensor in tensors for symbol in tensor.shape))


def _symbol(name: str) -> str:
    words = name.replace("*", "_times_").replace("/", "_over_").split("_")
    return "k" + "".join(word[:1].upper() + word[1:] for word in words)


def _op(spec: opspec.OpSpec) -> str:
    """The tables of one op and the ``OpSpec`` that points to them."""
    prefix = "k" + spec.name.removeprefix("Q2")
    tables = {
        "Inputs": ("TensorSpec", map(_tensor, spec.inputs)),
        "Repeated": ("TensorSpec", map(_tensor, spec.repeated)),
        "Outputs": ("TensorSpec", map(_tensor, spec.outputs)),
        "Attributes": ("AttributeSpec", map(_attribute, spec.attributes)),
        "Aliases": ("AliasSpec", (_alias(spec, *each) for each in spec.aliases)),
    }
    lines = []
    fields = [f'"{spec.name}"']
    for suffix, (kind, rows) in tables.items():
        body = _rows(rows)
        if body:
            lines.append(f"constexpr {kind} {prefix}{suffix}[] = {{\n{body}}};\n")
        fields.append(f"{prefix}{suffix}" if body else "{}")
    lines.append(f"constexpr OpSpec {prefix}Spec{{\n{_rows(fields)}}};\n")
    return "\n".join(lines)


def _rows(rows: Iterable[str]) -> str:
    return "".join(f"    {row},\n" for row in rows)


def _tensor(tensor: opspec.TensorSpec) -> str:
    shape = ", ".join(f"Symbol::{_symbol(each)}" for each in tensor.shape)
    element = "T" if tensor.has_graph_type else tensor.element_type
    return f'{{"{tensor.name}", ElementType::k{element}, {len(tensor.shape)}, {{{shape}}}}}'


def _attribute(attribute: opspec.AttributeSpec) -> str:
    return f'{{"{attribute.name}", AttributeType::k{attribute.type.capitalize()}}}'


def _alias(spec: opspec.OpSpec, output: str, source: str) -> str:
    return f"{{{spec.output_names().index(output)}, {spec.input_names().index(source)}}}"


def main() -> None:
    """Write the file."""
    PATH.write_text(spec_inc(), encoding="utf-8")


if __name__ == "__main__":
    main()
