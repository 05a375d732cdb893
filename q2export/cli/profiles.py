"""``q2export profiles``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from q2export.cli import options
from q2export.cli.output import aligned, print_json
from q2export.cli.settings import complete_profile, value_rows

if TYPE_CHECKING:
    from q2export.contracts.profile import Profile


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE]", shell_complete=complete_profile)
@options.json_output
def command(name: str | None, as_json: bool) -> None:
    """List the profiles engines can be built for, or show one in full.

    A profile says what an engine is built for: target, GPU, types, sizes, limits. NAME is one of the list; a
    FILE is a profile of your own, in YAML.
    """
    from q2export.contracts.profile_loading import load_profile, profile_names

    if name is not None:
        profile = load_profile(name)
        if as_json:
            print_json(profile.to_dict())
        else:
            click.echo(aligned(value_rows(profile.to_dict(), profile.origin)))
        return
    profiles = [load_profile(each) for each in profile_names()]
    if as_json:
        print_json([_summary(profile) for profile in profiles])
        return
    rows = [tuple(_summary(profiles[0])), *(tuple(_summary(each).values()) for each in profiles)]
    click.echo(aligned([["" if cell is None else cell for cell in row] for row in rows]))


def _summary(profile: Profile) -> dict[str, str | None]:
    return {
        "name": profile.name,
        "target": profile.target,
        "gpu": profile.gpu,
        "dtype": profile.dtype,
        "description": profile.description,
    }
