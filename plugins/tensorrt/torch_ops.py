"""The CUDA kernels under PyTorch: the operators of ``q2export.exporter.graph.ops`` on a GPU, and in place.

The exporter defines ``torch.ops.q2export.*`` with references for the CPU. :func:`register` adds

- the kernels as the CUDA implementation of the operators that the exporter defines; these are functional, so
  the attention copies its cache;
- for every op that aliases outputs with inputs an operator with a trailing underscore, ``rotary_attention_``,
  which updates ``past_*`` in place and returns the other outputs; it is what a generation loop wants.

All can be captured by CUDA graphs. The arguments are those of the specification: inputs, repeated inputs as
lists, attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from q2export.contracts import opspec
from q2export.contracts.dtypes import FLOAT_NAMES
from q2export.errors import GenerationError
from q2export.plugins.tensorrt import kernels
from q2export.plugins.tensorrt.fields import check_attributes
from q2export.plugins.tensorrt.shapes import bind_symbols, input_specs
from q2export.plugins.tensorrt.workspace import ALIGNMENT, aligned

_DEFINED_BY_THE_EXPORTER = (opspec.ROTARY, opspec.ATTENTION, opspec.MOE, opspec.QUANTIZED_MOE)
_IN_PLACE = (opspec.ATTENTION, opspec.ROTARY_ATTENTION)


@cache
def register() -> None:
    """Register the kernels with PyTorch, once.

    Raises:
        MissingDependencyError: the kernels are not built, or cannot be loaded here.
    """
    kernels.load(kernels.LIBRARY)
    library = _library()
    for spec in _DEFINED_BY_THE_EXPORTER:
        library.impl(spec.torch_name, implementation(spec, in_place=False), "CUDA")
    for spec in _IN_PLACE:
        library.define(in_place_schema(spec))
        library.impl(f"{spec.torch_name}_", implementation(spec, in_place=True), "CUDA")


@cache
def _library() -> torch.library.Library:
    return torch.library.Library(opspec.DOMAIN, "FRAGMENT")  # kept: what it registers goes with it


def in_place_schema(spec: opspec.OpSpec) -> str:
    """Return the schema of the in-place form: aliased inputs are written, their outputs not returned."""
    written = [target for _, target in spec.aliases]
    arguments = [
        f"Tensor({chr(ord('a') + written.index(each.name))}!) {each.name}"
        if each.name in written
        else f"Tensor {each.name}"
        for each in spec.inputs
    ]
    arguments += [f"{each.type} {each.name}" for each in spec.attributes]
    results = ", ".join(["Tensor"] * (len(spec.outputs) - len(written)))
    return f"{spec.torch_name}_({', '.join(arguments)}) -> {results}"


def implementation(spec: opspec.OpSpec, *, in_place: bool) -> Callable[..., Any]:
    """Return a function of the op's torch arguments that runs its kernel.

    Args:
        spec: the op.
        in_place: aliased inputs are updated, and their outputs are not returned.
    """

    def run(*arguments: Any) -> Tensor | tuple[Tensor, ...]:
        """Check the arguments, allocate what is not updated in place, and call the kernel."""
        inputs, values = _split(spec, arguments)
        aliases = dict(spec.aliases) if in_place else {}
        names = [each.name for each in spec.inputs]
        sources = {tensor.name: _source_of(spec, tensor, inputs) for tensor in spec.outputs}
        outputs = [
            inputs[names.index(aliases[name])] if name in aliases else torch.empty_like(source)
            for name, source in sources.items()
        ]
        _launch(spec, inputs, values, outputs)
        returned = [
            output for output, each in zip(outputs, spec.outputs, strict=True) if each.name not in aliases
        ]
        return returned[0] if len(returned) == 1 else tuple(returned)

    return run


def _split(spec: opspec.OpSpec, arguments: Sequence[Any]) -> tuple[list[Tensor], dict[str, int | float]]:
    """The tensors, repeated ones expert by expert, and the attributes by name."""
    sizes = (len(spec.inputs), len(spec.optional), len(spec.repeated), len(spec.attributes))
    rest = iter(arguments)
    fixed, optional, repeated, values = (list(islice(rest, size)) for size in sizes)
    cpu_values = list(rest)
    for left_out, tensor in zip(spec.optional, optional, strict=True):
        if tensor is not None:
            raise GenerationError(f"{spec.name}: {left_out.name} is given, and the CUDA kernels take none")
    codes = [each.element_type == "P" for each in spec.inputs]
    fixed = [one.view(torch.int32) if packed else one for one, packed in zip(fixed, codes, strict=True)]
    inputs = [*fixed, *(each for one in zip(*repeated, strict=True) for each in one)]
    names = spec.attribute_names()
    for each, value in zip(spec.cpu_attributes, cpu_values, strict=False):
        if value != 0:
            raise GenerationError(
                f"{spec.name}: {each.name} is {value}, expected 0: it is for the CPU, where weights have "
                "another type than what they multiply"
            )
    return inputs, dict(zip(names, values, strict=True))


def _source_of(spec: opspec.OpSpec, output: opspec.TensorSpec, inputs: Sequence[Tensor]) -> Tensor:
    """The input whose shape and type the output has; every op of the specification has one."""
    alias = dict(spec.aliases).get(output.name)
    for each, tensor in zip(spec.inputs, inputs, strict=False):
        if each.name == alias or (alias is None and each.shape == output.shape):
            return tensor
    raise GenerationError(f"{spec.name}: no input has the shape of output {output.name!r}")


def _launch(
    spec: opspec.OpSpec, inputs: Sequence[Tensor], values: dict[str, int | float], outputs: Sequence[Tensor]
) -> None:
    where = f"torch.ops.{opspec.DOMAIN}.{spec.torch_name}"
    dtype, device = inputs[0].dtype, inputs[0].device
    repeats = (len(inputs) - len(spec.inputs)) // max(1, len(spec.repeated))
    name = str(dtype).removeprefix("torch.")
    if name not in FLOAT_NAMES:
        raise GenerationError(f"{where}: expected {' or '.join(FLOAT_NAMES)}, found {name}")
    described = input_specs(spec, {"num_experts": repeats})
    for each, tensor in zip(described, inputs, strict=True):
        found = (tensor.dtype, tensor.device, tensor.is_contiguous())
        (wanted_type,) = (name,) if each.has_graph_type else opspec.PLUGIN_TYPES[each.element_type]
        wanted = (getattr(torch, wanted_type), device, True)
        if found != wanted:
            raise GenerationError(
                f"{where}: {each.name} must be {wanted[0]} on {device} and contiguous, found {found[0]} on "
                f"{found[1]}{'' if found[2] else ', not contiguous'}"
            )
    attributes = check_attributes(spec, values, where)
    sizes = bind_symbols(spec, attributes, [tuple(tensor.shape) for tensor in inputs], where)
    call = kernels.Call(spec, sizes, attributes, name, where)
    storage = torch.empty(kernels.workspace_bytes(call) + ALIGNMENT, dtype=torch.uint8, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    addresses = [[tensor.data_ptr() for tensor in each] for each in (inputs, outputs)]
    kernels.launch(call, addresses[0], addresses[1], aligned(storage.data_ptr()), stream)
