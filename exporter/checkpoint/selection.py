"""Which weights are quantized, and which tensors hold them.

Quantized are those of the linear layers: attention, MLP, every expert and the shared expert; embedding and
head if asked for. Norms, biases and the two gates of a mixture of experts stay as they are: they are a
thousandth of the bytes, and a router that chooses other experts changes more than any rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from q2export.contracts.quantization import BLOCK_SIZES, PackedQuantization
from q2export.errors import ProfileError
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.listing import listed_names
from q2export.exporter.checkpoint.packed import INPUT_ORDER_SUFFIX, PackedWeight
from q2export.exporter.checkpoint.parameters import EMBEDDING, LM_HEAD, expected_parameters
from q2export.strict.suggest import nearest

_LINEAR_SUFFIX = "_proj.weight"
_ROUTED_GATE = re.compile(r"(model\.layers\.\d+\.mlp\.experts\.\d+)\.gate_proj\.weight")
_ORDERED_INPUT = re.compile(
    r"(.*\.(?:self_attn|mlp)\.)(?:(?:experts\.\d+|shared_expert)\.)?(q|k|v|o|gate|up)_proj\.weight|lm_head\.weight"
)


def select_weights(config: ModelConfig, packed: PackedQuantization) -> dict[str, PackedWeight]:
    """The quantized weights and how each is stored, by Hugging Face name, in model order.

    Raises:
        ProfileError: a pattern of ``keep`` matches no parameter, or a weight cannot be cut into blocks.
    """
    parameters = expected_parameters(config)
    _check_patterns(packed.keep, parameters, config.tie_word_embeddings)
    selected = {
        name: PackedWeight(name, (shape[0], shape[1]), packed.scheme)
        for name, shape in parameters.items()
        if is_quantizable(name, packed.embedding) and not is_kept(name, packed.keep)
    }
    _check_block_size(selected.values(), packed.block_size)
    selected = _with_alternating_rows(selected)
    return _with_input_orders(selected) if packed.input_order else selected


def is_quantizable(name: str, embedding: bool) -> bool:
    """Whether a parameter is one that quantization is for; ``embedding``: embedding and head are, too."""
    return name.endswith(_LINEAR_SUFFIX) or (embedding and name in (EMBEDDING, LM_HEAD))


def is_kept(name: str, keep: Sequence[str]) -> bool:
    """Whether one of the shell patterns matches the name."""
    return any(fnmatchcase(name, pattern) for pattern in keep)


def _with_alternating_rows(selected: Mapping[str, PackedWeight]) -> dict[str, PackedWeight]:
    """Let gate and up of a routed expert, where both are quantized, share a tensor."""
    result = dict(selected)
    for name, gate in selected.items():
        match = _ROUTED_GATE.fullmatch(name)
        up = selected.get(f"{match[1]}.up_proj.weight") if match else None
        if match and up is not None:
            tensor = f"{match[1]}.gate_up_proj.weight"
            result[name] = replace(gate, tensor=tensor, first_row=0, row_step=2)
            result[up.name] = replace(up, tensor=tensor, first_row=1, row_step=2)
    return result


def ordered_input(name: str) -> tuple[str, ...] | None:
    """What a weight reads, equal for weights that read the same; None if its columns are never permuted."""
    match = _ORDERED_INPUT.fullmatch(name)
    if match is None:
        return None
    return (match[1], "o") if match[2] == "o" else (match[1] or name, "")


def _with_input_orders(selected: Mapping[str, PackedWeight]) -> dict[str, PackedWeight]:
    """Let the first weight that reads an input hold its order."""
    result = dict(selected)
    holders: dict[tuple[str, ...], str] = {}
    for name, weight in selected.items():
        read = ordered_input(name)
        if read is not None:
            holder = holders.setdefault(read, name)
            result[name] = replace(weight, input_order=holder + INPUT_ORDER_SUFFIX)
    return result


def _check_patterns(keep: Sequence[str], parameters: Mapping[str, object], tied: bool) -> None:
    for pattern in keep:
        if any(fnmatchcase(name, pattern) for name in parameters):
            continue
        if tied and fnmatchcase(LM_HEAD, pattern):
            hint = f"; the head is tied to the embedding: keep {EMBEDDING!r}"
        else:
            hint = _nearest_name(pattern, parameters)
        raise ProfileError(f"quantization.keep: {pattern!r} matches no weight of the model{hint}")


def _nearest_name(pattern: str, names: Iterable[str]) -> str:
    hint = nearest(pattern, names)
    return hint if "did you mean" in hint else "; patterns are those of a shell, such as 'model.layers.0.*'"


def _check_block_size(weights: Iterable[PackedWeight], block_size: int) -> None:
    wrong = [weight for weight in weights if weight.shape[1] % block_size]
    if not wrong:
        return
    fitting = [str(size) for size in BLOCK_SIZES if all(weight.shape[1] % size == 0 for weight in wrong)]
    pattern = f"*{wrong[0].name[wrong[0].name.rindex('.', 0, -len('.weight')) :]}"
    kept = f"keep such weights in high precision, for example with the pattern {pattern!r}"
    advice = f"use block size {' or '.join(fitting)}, or {kept}" if fitting else f"no block size does; {kept}"
    raise ProfileError(
        f"quantization.block_size: {block_size} does not divide the {wrong[0].shape[1]} columns of "
        f"{listed_names([weight.name for weight in wrong])}; {advice}"
    )
