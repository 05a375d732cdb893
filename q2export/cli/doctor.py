"""``q2export doctor``."""

from __future__ import annotations

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_bytes, print_json, warn


@click.command()
@options.json_output
def command(as_json: bool) -> None:
    """Show what this machine can build and run.

    Versions, processor, memory, GPUs, and for each thing that cannot be done here what is missing.
    """
    from q2export.inspect.machine import examine
    from q2export.strict.codec import to_plain

    found = examine()
    if as_json:
        print_json(to_plain(found))
        return
    memory = "unknown"
    if found.memory_bytes is not None and found.available_memory_bytes is not None:
        memory = f"{format_bytes(found.memory_bytes)}, {format_bytes(found.available_memory_bytes)} available"
    gpus = [
        (f"GPU {i}", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB")
        for i, gpu in enumerate(found.gpus)
    ]
    machine = [
        ("q2export", found.q2export),
        ("python", found.python),
        ("platform", found.platform),
        ("processor", f"{found.processor}, {found.cores} cores usable"),
        ("memory", memory),
        *(gpus or [("GPU", "none found by nvidia-smi")]),
        ("CPU kernels", found.cpu_kernels),
        ("CUDA kernels", found.kernels),
        ("onnxruntime", ", ".join(found.providers) or "not usable"),
    ]
    marks = {True: "yes", False: "no"}
    abilities = [(marks[each.available], each.what, each.missing) for each in found.capabilities]
    click.echo(aligned(machine))
    click.echo(f"\npackages\n{aligned(found.packages.items(), indent=2)}")
    click.echo(f"\ncan be done here\n{aligned(abilities, indent=2)}")
    warn(found.problems)
