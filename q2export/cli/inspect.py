"""``q2export inspect``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from q2export.cli import options
from q2export.cli.output import aligned, format_bytes, print_json, warn
from q2export.cli.results import Row, manifest_rows

if TYPE_CHECKING:
    from q2export.inspect.inspection import CheckpointSummary, MemorySummary
    from q2export.inspect.onnx import OnnxSummary, TensorInfo


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@options.json_output
def command(path: Path, as_json: bool) -> None:
    """Show what a package, an ONNX file or a checkpoint holds.

    Ops, functions, inputs and outputs, where the weights are, and the memory that weights and KV cache need
    for each batch and context. No weight is read.
    """
    from q2export.inspect.inspection import inspect

    found = inspect(path)
    if as_json:
        print_json(found.document())
        return
    sections = [f"{found.kind} {found.path}"]
    if found.manifest is not None:
        sections.append(aligned(manifest_rows(found.manifest), indent=2))
    if found.checkpoint is not None:
        warn(found.checkpoint.config["warnings"])
        sections.append(aligned(_checkpoint_rows(found.checkpoint), indent=2))
    if found.graph is not None:
        sections += _graph_sections(found.graph)
    if found.memory is not None:
        sections.append(_memory_section(found.memory))
    click.echo("\n\n".join(sections))


def _checkpoint_rows(checkpoint: CheckpointSummary) -> Iterator[Row]:
    config = checkpoint.config
    yield "model type", str(config["model_type"])
    yield (
        "parameters",
        f"{checkpoint.parameters:,} in {checkpoint.tensors} tensors, {checkpoint.files} file(s)",
    )
    if quantization := config["quantization"]:
        yield "quantized", f"{checkpoint.quantized} matrices: {_quantization(quantization)}"
    for dtype, nbytes in checkpoint.bytes_by_dtype.items():
        yield dtype, format_bytes(nbytes)
    yield "layers", f"{config['num_hidden_layers']}, hidden size {config['hidden_size']}"
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    yield "attention heads", f"{heads} of {config['head_dim']}, {kv_heads} for keys and values"
    if moe := config["moe"]:
        yield "experts", f"{moe['num_experts']}, {moe['num_experts_per_tok']} per token"
    yield "vocabulary", f"{config['vocab_size']:,}{', head tied' if config['tie_word_embeddings'] else ''}"
    yield "positions", f"{config['max_position_embeddings']:,}"


def _quantization(quantization: Mapping[str, Any]) -> str:
    """Of the packed form, or of a published checkpoint."""
    from q2export.contracts.quantization import PackedQuantization

    if "group_size" not in quantization:
        return PackedQuantization(**quantization).title
    groups = f"groups of {quantization['group_size']}" if quantization["group_size"] else "a group per row"
    return f"{quantization['method']}, {quantization['bits']} bits, {groups}; build and repack take it"


def _graph_sections(graph: OnnxSummary) -> Iterator[str]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph.opsets)
    yield f"graph: {format_bytes(graph.file_bytes)}, IR version {graph.ir_version}, opsets {opsets}"
    ops = [(op.count, _qualified(op.domain, op.op_type)) for op in graph.ops]
    yield f"ops\n{aligned(ops, indent=2, right=(0,))}"
    if graph.functions:
        rows = [(_qualified(each.domain, each.name), f"{each.nodes} nodes") for each in graph.functions]
        yield f"functions\n{aligned(rows, indent=2)}"
    yield f"inputs\n{aligned(_tensor_rows(graph.inputs), indent=2)}"
    yield f"outputs\n{aligned(_tensor_rows(graph.outputs), indent=2)}"
    if graph.weights:
        places = [
            (each.location or "(inside the file)", f"{each.tensors} tensors", format_bytes(each.bytes))
            for each in graph.weights
        ]
        yield f"weights\n{aligned(places, indent=2, right=(1, 2))}"


def _qualified(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


def _tensor_rows(tensors: tuple[TensorInfo, ...]) -> Iterator[Row]:
    """One row per tensor; numbered ones of the same type and shape (a KV cache) share a row."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        stem, dot, number = tensor.name.rpartition(".")
        kind = f"{tensor.dtype} [{', '.join(tensor.shape)}]"
        numbered = dot and number.isdigit()
        groups.setdefault((stem if numbered else tensor.name, kind), []).append(number if numbered else "")
    for (name, kind), numbers in groups.items():
        if len(numbers) > 1:
            yield f"{name}.{numbers[0]} ... {numbers[-1]}", kind
        else:
            yield f"{name}.{numbers[0]}" if numbers[0] else name, kind


def _memory_section(memory: MemorySummary) -> str:
    """A table: batches down, contexts across."""
    contexts = list(dict.fromkeys(need.context for need in memory.table))
    cells = {(need.batch, need.context): format_bytes(need.total_bytes) for need in memory.table}
    rows = [["batch", *(f"{context:,} tokens" for context in contexts)]]
    for batch in dict.fromkeys(need.batch for need in memory.table):
        rows.append([str(batch), *(cells[batch, context] for context in contexts)])
    table = aligned(rows, indent=2, right=range(len(contexts) + 1))
    return (
        f"memory: weights {format_bytes(memory.weight_bytes)}, KV cache "
        f"{format_bytes(memory.kv_cache_bytes_per_token)} per token ({memory.kv_dtype}); "
        f"together (without activations)\n{table}"
    )
