"""``quantization_config`` of published checkpoints: what is read, what is harmless, and what is refused.

The fields are those that AutoGPTQ 0.7.1 (``quantization/config.py``), GPTQModel 7.7.0 (the same file),
AutoAWQ 0.2.9 (``models/_config.py``) and transformers 5.23 (``utils/quantization_config.py``) write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from q2export.contracts.quantization import BLOCK_SIZES
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.json_fields import Fields
from q2export.strict.json import shown
from q2export.strict.suggest import nearest

PublishedMethod = Literal["gptq", "awq"]

_ADVICE = "use the unquantized model and quantize it here, or a GPTQ or AWQ (gemm) version of it"

# checkpoint_format of GPTQ -> what was subtracted from the zero points before they were packed. GPTQModel's
# converters (utils/model.py, convert_gptq_v1_to_v2_format_module) say so.
_ZERO_POINT_OFFSETS: Mapping[str, int] = {"gptq": 1, "gptq_v2": 0}
_AWQ_VERSIONS = ("gemm",)

_ALIASES: Mapping[str, str] = {
    "w_bit": "bits",
    "q_group_size": "group_size",
    "method": "quant_method",
}

_READ: Mapping[PublishedMethod, frozenset[str]] = {
    "gptq": frozenset(
        {
            "quant_method",
            "bits",
            "group_size",
            "checkpoint_format",
            "format",
            "is_marlin_format",
            "desc_act",
            "sym",
            "dynamic",
            "pack_dtype",
            "adapter",
            "rotation",
        }
    ),
    "awq": frozenset(
        {
            "quant_method",
            "bits",
            "group_size",
            "version",
            "checkpoint_format",
            "format",
            "zero_point",
            "desc_act",
            "sym",
            "dynamic",
            "pack_dtype",
            "adapter",
            "rotation",
        }
    ),
}

# How the weights were found, which kernels run them elsewhere, and which modules were left out: the tensors
# themselves say the latter.
_HARMLESS = frozenset(
    {
        "act_group_aware",
        "backend",
        "batch_size",
        "block_name_to_quantize",
        "cache_block_outputs",
        "damp_auto_increment",
        "damp_percent",
        "dataset",
        "disable_exllama",
        "do_fuse",
        "exllama_config",
        "fuse_max_seq_len",
        "lm_head",
        "max_input_length",
        "meta",
        "model_file_base_name",
        "model_name_or_path",
        "model_seqlen",
        "module_name_preceding_first_block",
        "mse",
        "modules_in_block_to_quantize",
        "modules_to_fuse",
        "modules_to_not_convert",
        "pad_token_id",
        "static_groups",
        "tokenizer",
        "true_sequential",
        "use_cuda_fp16",
        "use_exllama",
    }
)


@dataclass(frozen=True)
class PublishedQuantization:
    """What a published checkpoint says about its quantized tensors.

    Attributes:
        method: ``gptq`` or ``awq`` (gemm); decides names, shapes and packing of the tensors.
        bits: of a code, 4 or 8.
        group_size: rows of a packed weight (inputs) that share a scale; None: all of them.
        zero_point_offset: what has to be added to the packed zero points: 1 for GPTQ's first format.
        symmetric: whether every zero point is ``2 ** (bits - 1)``; None: not stated.
        act_order: whether inputs may be grouped in any order, which ``g_idx`` tensors give; None: not stated.
        warnings: for the user to see.
    """

    method: PublishedMethod
    bits: int
    group_size: int | None
    zero_point_offset: int = 0
    symmetric: bool | None = None
    act_order: bool | None = None
    warnings: tuple[str, ...] = ()


def parse_published(section: Mapping[str, object], prefix: str) -> PublishedQuantization:
    """Read the ``quantization_config`` of a checkpoint whose ``quant_method`` is not our own.

    Args:
        section: the object.
        prefix: goes before field names in messages, ``quantization_config.``.

    Raises:
        ConfigError: naming the field, on another method, a variant that is not supported, or a wrong type.
    """
    fields = Fields(_without_aliases(section, prefix), prefix)
    method = _method(fields)
    _refuse_variants(fields)
    return _gptq(fields) if method == "gptq" else _awq(fields)


def _without_aliases(section: Mapping[str, object], prefix: str) -> dict[str, object]:
    plain = {name: value for name, value in section.items() if name not in _ALIASES}
    for alias, name in _ALIASES.items():
        if alias not in section:
            continue
        if plain.get(name, section[alias]) != section[alias]:
            raise ConfigError(
                f"{prefix}{alias} is {shown(section[alias])}, yet {name} is {shown(plain[name])}; "
                "they mean the same: correct one of them"
            )
        plain[name] = section[alias]
    return plain


def _method(fields: Fields) -> PublishedMethod:
    if "quant_method" not in fields.data and any(name.startswith("load_in_") for name in fields.data):
        raise ConfigError(f"{fields.prefix}load_in_4bit/8bit: bitsandbytes is not supported; {_ADVICE}")
    method = fields.string("quant_method").lower()
    if method == "gptq":
        return "gptq"
    if method == "awq":
        return "awq"
    raise ConfigError(
        f"{fields.prefix}quant_method: expected gptq, awq or q2export, found {shown(method)}; {_ADVICE}"
    )


def _refuse_variants(fields: Fields) -> None:
    """What would change the numbers, or the tensors, of either method."""
    for name, what in (("adapter", "an adapter"), ("rotation", "a rotation")):
        if fields.present(name):
            raise ConfigError(
                f"{fields.prefix}{name}: expected null, found {shown(fields.data[name])}; {what} on top of "
                f"quantized weights is not implemented: {_ADVICE}"
            )
    if fields.present("pack_dtype") and fields.string("pack_dtype").removeprefix("torch.") != "int32":
        raise fields.wrong("pack_dtype", "'int32'; codes packed into other words are not implemented")
    _check_rules(fields)


def _check_rules(fields: Fields) -> None:
    """GPTQModel's ``dynamic``: regular expressions of modules that are skipped ('-:') or done otherwise.

    Which modules are quantized is seen from their tensors, so only a difference in how is refused.
    """
    for pattern, changes in (fields.object("dynamic") or {}).items():
        if pattern.startswith("-:"):
            continue
        rule = f"{fields.prefix}dynamic: rule {shown(pattern)}"
        if not isinstance(changes, Mapping):
            raise ConfigError(f"{rule}: expected an object, found {shown(changes)}")
        for name, value in changes.items():
            if name not in _HARMLESS and value != fields.data.get(name):
                raise ConfigError(
                    f"{rule}: {name} is {shown(value)}, elsewhere {shown(fields.data.get(name))}; modules "
                    f"quantized in different ways are not implemented: {_ADVICE}"
                )


def _gptq(fields: Fields) -> PublishedQuantization:
    if fields.boolean("is_marlin_format", default=False):
        raise fields.wrong("is_marlin_format", f"false: tensors in Marlin's order are not read; {_ADVICE}")
    return PublishedQuantization(
        method="gptq",
        bits=_one_of(fields, "bits", (4, 8)),
        group_size=_group_size(fields),
        zero_point_offset=_ZERO_POINT_OFFSETS[_format(fields, tuple(_ZERO_POINT_OFFSETS), "gptq")],
        symmetric=fields.boolean("sym", default=False) if fields.present("sym") else None,
        act_order=fields.boolean("desc_act", default=False) if fields.present("desc_act") else None,
        warnings=tuple(_unknown(fields, "gptq")),
    )


def _awq(fields: Fields) -> PublishedQuantization:
    for name in ("version", "checkpoint_format", "format"):
        if fields.present(name) and fields.string(name).lower() not in _AWQ_VERSIONS:
            raise fields.wrong(name, f"'gemm', the only order of AWQ's tensors that is read; {_ADVICE}")
    if fields.present("backend") and fields.string("backend").lower() == "llm-awq":
        raise fields.wrong("backend", f"no such field: the packing of llm-awq is not read; {_ADVICE}")
    if not fields.boolean("zero_point", default=True):
        raise fields.wrong("zero_point", f"true: signed codes without zero points are not read; {_ADVICE}")
    if fields.boolean("desc_act", default=False):
        raise fields.wrong("desc_act", "false or no such field: AWQ has no g_idx")
    return PublishedQuantization(
        method="awq",
        bits=_one_of(fields, "bits", (4,)),
        group_size=_group_size(fields),
        warnings=tuple(_unknown(fields, "awq")),
    )


def _format(fields: Fields, valid: tuple[str, ...], default: str) -> str:
    """``checkpoint_format``, which newer files call ``format`` too; both must agree."""
    found = default
    for name in ("checkpoint_format", "format"):
        if not fields.present(name):
            continue
        found = fields.string(name).lower()
        if found not in valid:
            raise fields.wrong(name, f"{' or '.join(valid)}; {_ADVICE}")
    given = {fields.string(name).lower() for name in ("checkpoint_format", "format") if fields.present(name)}
    if len(given) > 1:
        raise fields.wrong(
            "format", f"the same as checkpoint_format ({shown(fields.data['checkpoint_format'])})"
        )
    return found


def _one_of(fields: Fields, name: str, valid: tuple[int, ...]) -> int:
    value = fields.integer(name)
    if value not in valid:
        raise fields.wrong(name, f"{' or '.join(map(str, valid))}; {_ADVICE}")
    return value


def _group_size(fields: Fields) -> int | None:
    """Any multiple of the smallest block: a larger group is a few blocks with the same scale."""
    size = fields.integer("group_size", low=-1)
    if size == -1:
        return None
    if size == 0 or size % min(BLOCK_SIZES):
        raise fields.wrong("group_size", f"-1 or a multiple of {min(BLOCK_SIZES)}; {_ADVICE}")
    return size


def _unknown(fields: Fields, method: PublishedMethod) -> Iterator[str]:
    read = _READ[method]
    for name in sorted(fields.data.keys() - read - _HARMLESS):
        hint = nearest(name, read)
        yield (
            f"unknown field {shown(fields.prefix + name)} is ignored and could change the numbers"
            + (hint if "did you mean" in hint else "")
        )
