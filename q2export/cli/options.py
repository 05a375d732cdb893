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
    help="What to build for: a name that 'q2export profiles' lists, or a YAML file.",
    shell_complete=complete_profile,
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if q2export wrote it.")
json_output = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads = click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="Number of CPU threads; 0 is one per core.  [default: the profile's]",
)
package = click.argument("package", type=click.Path(path_type=Path))
