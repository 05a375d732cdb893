"""``q2export serve``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("packages", nargs=-1, required=True, metavar="PACKAGE...", type=click.Path(path_type=Path))
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="Name of a model, in the order of the packages. Repeatable.  [default: the package's folder]",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is every one."
)
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option(
    "--api-key",
    envvar="Q2EXPORT_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="Answer only requests that carry this key.",
)
@click.option(
    "--rows", type=click.IntRange(1), help="Most texts generated at once.  [default: the package's]"
)
@click.option(
    "--max-queue",
    default=256,
    show_default=True,
    type=click.IntRange(0),
    help="Requests that may wait; others are answered 429.",
)
@click.option(
    "--prefix-bytes",
    type=click.IntRange(min=0),
    metavar="N",
    help="Memory for the beginnings of texts that have ended, which others may share; 0 keeps none.  "
    "[default: what running texts leave of the KV cache]",
)
@click.option(
    "--drain-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="Time that running requests have to finish after SIGTERM.",
)
@click.option(
    "--allow-special-tokens",
    is_flag=True,
    help="Let the text of a special token in a prompt of /v1/completions be that token.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    help="CPU threads of each engine; 0 is one per core.  [default: all, shared among the packages]",
)
def command(
    packages: tuple[Path, ...],
    names: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    rows: int | None,
    max_queue: int,
    prefix_bytes: int | None,
    drain_timeout: float,
    allow_special_tokens: bool,
    threads: int | None,
) -> None:
    """Serve engines over HTTP, with OpenAI's API.

    Several packages are told apart by their names. SIGTERM finishes what runs and exits with 0. Needs the
    extra "server".
    """
    from q2export.runtime.scheduler import SchedulerOptions
    from q2export.runtime.server.options import ServerOptions
    from q2export.runtime.server.serve import serve, served_names

    serve(
        served_names(packages, names),
        ServerOptions(api_key=api_key, allow_special_tokens=allow_special_tokens),
        SchedulerOptions(rows=rows, queue_limit=max_queue, prefix_bytes=prefix_bytes),
        host=host,
        port=port,
        threads=threads,
        drain_seconds=drain_timeout,
    )
