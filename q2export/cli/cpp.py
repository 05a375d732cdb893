"""``q2export cpp``."""

from __future__ import annotations

import click

from q2export.cli import options
from q2export.cli.output import aligned, print_json


@click.command()
@click.option("--prefix", is_flag=True, help="Print the CMake prefix alone.")
@options.json_output
def command(prefix: bool, as_json: bool) -> None:
    """Show what C and C++ programs link with.

    What libq2export loads for them, ONNX Runtime and the ops, is shown as well.

    The CMake prefix holds libq2export.so, its headers, and what find_package and pkg-config read.
    """
    from q2export.runtime.cpp import cpp_libraries
    from q2export.strict.codec import to_plain

    found = to_plain(cpp_libraries())
    if as_json:
        print_json(found)
    elif prefix:
        click.echo(found["prefix"])
    else:
        click.echo(aligned([(name, value or "not found") for name, value in found.items()]))
