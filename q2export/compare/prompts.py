"""What parity is checked on: prompts for ``verify``, a few tokens for ``build``, golden tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.errors import ParityError
from q2export.package.manifest import EngineInfo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PROMPTS = (
    "The quick brown fox jumps over the lazy dog, and then",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "In 1969, 3.14159 and 2.71828 were already well known: ",
    "Die Würde des Menschen ist unantastbar. 人人生而自由,在尊严和权利上一律平等。",
    "A class is a way to combine data and functionality. Creating a new class creates a new",
)
MAX_PROMPT_TOKENS = 48
SMOKE_PROMPTS, SMOKE_PROMPT_TOKENS = 2, 16
GOLDEN_TOKENS, GOLDEN_LOGITS = 12, 4
MAX_TEXT_TOKENS = 1024


@dataclass(frozen=True)
class ParityPrompts:
    """Token ids to compare on, and how many tokens to generate after each prompt."""

    prompts: list[list[int]]
    text: list[int] | None
    greedy_tokens: int
    decode: Callable[[Sequence[int]], str] | None


def parity_prompts(
    folder: Path, engine: EngineInfo, prompts: Sequence[str] | None, text: str | None, greedy_tokens: int
) -> ParityPrompts:
    """Tokenize what ``verify`` compares on, cut to what the engine can hold.

    Args:
        folder: the package, whose tokenizer is used.
        engine: from its manifest.
        prompts: texts; None takes :data:`PROMPTS`, or fixed token ids where the package has no tokenizer.
        text: running text for perplexity; its first 1,024 tokens are used.
        greedy_tokens: wanted after each prompt; fewer if the engine's capacity does not allow it.

    Raises:
        ParityError: a prompt has no tokens or too many, or texts are given and there is no tokenizer.
    """
    from q2export.runtime.tokenizer import TOKENIZER_FILE, load_tokenizer

    tokens = min(greedy_tokens, engine.max_capacity // 2)
    room = engine.max_capacity - tokens
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        if prompts is not None or text is not None:
            raise ParityError(
                f"{folder}: holds no {TOKENIZER_FILE}; leave out prompts and text, then fixed "
                "token ids are compared"
            )
        return ParityPrompts(_fixed_ids(engine, 3, min(17, room)), None, tokens, None)
    encoded = [tokenizer.encode(prompt) for prompt in (prompts if prompts is not None else PROMPTS)]
    if prompts is None:
        encoded = [ids[: min(MAX_PROMPT_TOKENS, room)] for ids in encoded]
    for index, ids in enumerate(encoded):
        if not 1 <= len(ids) <= room:
            raise ParityError(
                f"prompt {index}: {len(ids)} tokens; expected 1 to {room}, as {tokens} more are generated"
            )
    text_ids = None
    if text is not None:
        text_ids = tokenizer.encode(text)[: min(MAX_TEXT_TOKENS, engine.max_capacity)]
    return ParityPrompts(encoded, text_ids, tokens, tokenizer.decode)


def smoke_prompts(folder: Path, engine: EngineInfo) -> list[list[int]]:
    """The two short prompts ``build`` checks its engine on."""
    found = parity_prompts(folder, engine, None, None, 0).prompts[:SMOKE_PROMPTS]
    return [ids[: min(SMOKE_PROMPT_TOKENS, max(1, engine.max_capacity // 2))] for ids in found]


def _fixed_ids(engine: EngineInfo, count: int, length: int) -> list[list[int]]:
    """Token ids spread over the vocabulary: multiples of a prime, another one for each prompt."""
    primes = (7919, 104729, 1299709)
    return [
        [(index + 1) * primes[row] % engine.vocab_size for index in range(length)] for row in range(count)
    ]


GOLDEN_FILES = ("golden/inputs.json", "golden/outputs.json")


def golden_step(engine: EngineInfo) -> tuple[list[int], npt.NDArray[np.int64]]:
    """The token ids of the golden step and the positions whose logits it asks for."""
    import numpy as np

    tokens = _fixed_ids(engine, 1, min(GOLDEN_TOKENS, engine.max_capacity))[0]
    return tokens, np.arange(len(tokens), dtype=np.int64)[-GOLDEN_LOGITS:]


def write_golden(folder: Path, engine: EngineInfo) -> None:
    """Write :data:`GOLDEN_FILES`: inputs for one step of the engine and its answer, in polygraphy's format.

    ``polygraphy run model.onnx --onnxrt --load-inputs golden/inputs.json --load-outputs golden/outputs.json``
    repeats the step and compares. The cache is short, and logits are those of the last few positions, to keep
    the files small.

    Args:
        folder: the package.
        engine: describes its graph.

    Raises:
        ParityError: the engine is one ONNX Runtime cannot run on the CPU.
    """
    from q2export.compare.polygraphy_files import save_inputs, save_outputs
    from q2export.runtime.backends.onnxruntime import step_inputs
    from q2export.runtime.backends.onnxruntime_session import open_session

    if "bfloat16" in (engine.dtype, engine.kv_dtype):
        raise ParityError(
            "golden files are computed by ONNX Runtime, which has no bfloat16 arithmetic on the CPU, and "
            "read by Polygraphy, which has no such type; leave them out, or take float16 or float32"
        )
    tokens, positions = golden_step(engine)
    feed = step_inputs(engine, tokens, positions)
    session = open_session(folder / engine.file, threads=1)
    (logits,) = session.run(["logits"], feed)
    inputs, outputs = (folder / name for name in GOLDEN_FILES)
    inputs.parent.mkdir()
    save_inputs(inputs, [feed])
    save_outputs(outputs, "q2export", [{"logits": logits}])
