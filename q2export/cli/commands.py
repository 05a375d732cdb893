"""The table of commands, and the group that imports a command only when it is run.

``q2export --help`` reads the table alone, so that it answers before any heavy module could be loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

from q2export.strict.suggest import nearest

# In the order of use. Each is `command` of the module q2export.cli.<name>; its help begins with these words.
COMMANDS: Mapping[str, str] = {
    "build": "Build an engine package from a checkpoint, and check its parity.",
    "profiles": "List the profiles engines can be built for, or show one in full.",
    "quantize": "Write a checkpoint with quantized weights.",
    "repack": "Write a GPTQ or AWQ checkpoint in the packed form.",
    "export": "Write a checkpoint as an ONNX file for a target.",
    "generate": "Generate text from a prompt.",
    "chat": "Talk to a model, with its own chat template.",
    "serve": "Serve engines over HTTP, with OpenAI's API.",
    "triton": "Write a model repository for Triton Inference Server.",
    "verify": "Compare an engine with the PyTorch reference.",
    "inspect": "Show what a package, an ONNX file or a checkpoint holds.",
    "bench": "Measure prefill and decode speed of an engine.",
    "cpp": "Show what C and C++ programs link with.",
    "doctor": "Show what this machine can build and run.",
}


class CommandGroup(click.Group):
    """A group whose commands are named by :data:`COMMANDS` and imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None if there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"q2export.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command named by the first argument; an unknown name is answered with the nearest one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise click.UsageError(f"no command {name!r}{nearest(name, COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
