"""Options that several commands share, so that each has one name and one meaning."""

from __future__ import annotations

from pathlib import Path

import click

from q2export.cli.settings import complete_profile

model = click.option(
    "--model", required=True, metavar="MODEL", help="Checkpoint folder, or Hugging Face hub id."
)
revision = click.option("--revision", metavar="REVISION", help="Branch, tag or commit of a hub id.")
profile = click.option(
    "--profile",
    default="cpu",
    show_default=True,
    metavar="NAME|FILE",
    help="What to build for; 'q2export profiles' lists the names.",
    shell_complete=complete_profile,
)
quantization = click.option(
    "--quantization",
    type=click.Choice(["none", "int4", "int8"]),
    help="Quantize the weights first.  [default: the profile's; none where there is no profile]",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing output of q2export.")
json_output = click.option("--json", "as_json", is_flag=True, help="Write the result as JSON to stdout.")
prepack = click.option(
    "--prepack/--no-prepack",
    default=None,
    help="Keep a copy of the matrices in the kernels' own layout: faster, for their memory once more."
    "  [default: the profile's]",
)
threads = click.option(
    "--threads", type=click.IntRange(min=0), help="CPU threads; 0 is one per core.  [default: the profile's]"
)
package = click.argument("package", type=click.Path(path_type=Path))
