"""Train the small test checkpoints on the language reference that every Python ships (``pydoc_data.topics``).

    python tests/data/checkpoints/train.py --model dense --output DIR [--steps N]
    python tests/data/checkpoints/train.py --evaluate DIR

Writes ``model.safetensors`` (bf16) and ``tokenizer.json``. The other files of a checkpoint, in the spelling
of published Qwen2 and Qwen1.5-MoE checkpoints, are kept beside this script and say which shape to train.
Needs torch, transformers and tokenizers; :func:`held_out_text` and :func:`training_documents` need none.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

HERE = Path(__file__).parent
HELD_OUT_FILE = HERE / "held_out.txt"
CHECKPOINTS = {"dense": HERE / "qwen2-tiny", "moe": HERE / "qwen2-moe-tiny"}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
# Topics of plain prose and of method lists that no other topic repeats: about 5 % of the text.
HELD_OUT_TOPICS = ("typesfunctions", "typesmapping", "typesmethods", "typesmodules", "unary", "yield")
# In the order of their ids, which follow those of the merges. The embedding has six rows more, for no token:
# published checkpoints pad it as well.
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TOKENIZER_SIZE = 1530
END_ID = TOKENIZER_SIZE - 3
# The pattern of Qwen2's tokenizer.json: contractions, words, single digits, punctuation, line ends, blanks.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run; one step sees ``batch * length`` tokens.

    The text is small (107,000 tokens) and soon learned by heart: the held-out loss came out higher with less
    dropout and decay, and with more steps.
    """

    steps: int = 1000
    learning_rate: float = 2e-3
    batch: int = 8
    length: int = 512
    warmup: int = 60
    weight_decay: float = 0.5
    dropout: float = 0.25  # on the output of every attention and feed-forward block, in training only
    balance: float = 0.01  # weight of the loss that spreads tokens over the experts
    seed: int = 20240607
    evaluate_every: int = 100


@dataclass(frozen=True)
class Score:
    """Teacher-forced likelihood of a text: ``loss`` is in nats per token."""

    tokens: int
    bytes: int
    loss: float

    def __str__(self) -> str:
        per_byte = self.loss * self.tokens / self.bytes
        return (
            f"{self.tokens} tokens, {self.bytes} bytes, loss {self.loss:.4f}, "
            f"perplexity {math.exp(self.loss):.3f} per token, {math.exp(per_byte):.4f} per byte"
        )


def read_topics() -> dict[str, str]:
    """The running Python's language reference: topic name -> text. It differs between Python versions."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return topics


def held_out_text() -> str:
    """The committed text that no checkpoint was trained on."""
    return HELD_OUT_FILE.read_text(encoding="utf-8")


def extract_held_out(topics: Mapping[str, str]) -> str:
    """The text of :data:`HELD_OUT_TOPICS`, as ``held_out.txt`` was written from it."""
    return "\n".join(topics[name] for name in HELD_OUT_TOPICS)


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, without surrounding white space and without one-line titles."""
    return [block.strip() for block in text.split("\n\n") if len(block.strip()) > 40]


def training_documents(topics: Mapping[str, str]) -> list[str]:
    """Topics to train on: none held out, no paragraph of the held-out text, no topic mostly inside another.

    Many topics are sections of a longer one, so the longest are taken first and a topic is dropped when more
    than half of its text has been taken already.
    """
    held_out = set(paragraphs(held_out_text()))
    taken: set[str] = set()
    documents = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        blocks = paragraphs(topics[name])
        repeated = sum(len(block) for block in blocks if block in taken)
        if name in HELD_OUT_TOPICS or not blocks or 2 * repeated > sum(map(len, blocks)):
            continue
        taken.update(blocks)
        kept = [block for block in topics[name].split("\n\n") if block.strip() not in held_out]
        documents.append("\n\n".join(kept))
    return documents


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """Byte-level BPE with Qwen2's normalizer and pre-tokenizer; the special tokens come after the merges."""
    import tokenizers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE - 3, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(text, normalized=False, special=True) for text in SPECIAL_TOKENS]
    )
    found = tokenizer.get_vocab_size()
    if found != TOKENIZER_SIZE:
        raise ValueError(f"{found} tokens, expected {TOKENIZER_SIZE}: is the text shorter?")
    return tokenizer


def build_model(config_file: Path) -> Any:
    """The transformers model of a published ``config.json``, with fresh fp32 weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(config_file)
    auto: Any = AutoModelForCausalLM  # from_config is untyped
    return auto.from_config(config, dtype="float32")


def add_dropout(model: Any, rate: float) -> list[Any]:
    """Drop ``rate`` of every block's output in training mode; Qwen2 itself only has attention dropout."""
    from torch.nn import functional

    def drop(module: torch.nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
        return functional.dropout(output, rate, module.training)

    handles = [model.model.embed_tokens.register_forward_hook(drop)]
    for layer in model.model.layers:
        handles += [layer.self_attn.o_proj.register_forward_hook(drop), layer.mlp.register_forward_hook(drop)]
    return handles


def batches(documents: list[list[int]], recipe: Recipe) -> Iterator[torch.Tensor]:
    """Endless ``[batch, length + 1]`` windows over the documents, shuffled and shifted anew every epoch.

    ``<|endoftext|>`` starts the stream and ends every document, so the model learns to begin and to stop.
    """
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    pending: list[torch.Tensor] = []
    while True:
        stream = [END_ID]
        for index in torch.randperm(len(documents), generator=generator).tolist():
            stream += [*documents[index], END_ID]
        first = int(torch.randint(recipe.length, (1,), generator=generator))
        starts = range(first, len(stream) - recipe.length, recipe.length)
        order = torch.randperm(len(starts), generator=generator).tolist()
        pending += [torch.tensor(stream[starts[i] : starts[i] + recipe.length + 1]) for i in order]
        while len(pending) >= recipe.batch:
            yield torch.stack(pending[: recipe.batch])
            pending = pending[recipe.batch :]


def make_optimizer(model: Any, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; norms and biases do not decay."""
    import torch

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    decay = recipe.weight_decay
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=decay)


def schedule(step: int, recipe: Recipe) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine down to zero at the last step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


def train(model: Any, tokenizer: Tokenizer, documents: list[str], recipe: Recipe) -> None:
    """Train in place (bf16 autocast) and leave the weights of the best held-out loss in ``model``."""
    import torch

    optimizer = make_optimizer(model, recipe)
    handles = add_dropout(model, recipe.dropout)
    encoded = [tokenizer.encode(text).ids for text in documents]
    windows = batches(encoded, recipe)
    balance = {"output_router_logits": True} if hasattr(model.config, "num_experts") else {}
    best, best_weights, begin = math.inf, {}, time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe)
        model.train()
        window = next(windows)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=window[:, :-1], **balance)
        loss = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), window[:, 1:].flatten())
        total = loss + recipe.balance * output.aux_loss if balance else loss
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            held_out = score(model, tokenizer, held_out_text()).loss
            seconds = f"{time.monotonic() - begin:.0f} s"
            print(f"step {step + 1}: loss {loss.item():.3f}, held out {held_out:.4f}, {seconds}", flush=True)
            if held_out < best:
                best = held_out
                best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)
    for handle in handles:
        handle.remove()


def score(model: Any, tokenizer: Tokenizer, text: str, length: int = 512) -> Score:
    """Likelihood of ``text`` after ``<|endoftext|>``, in windows of ``length``; every token counts once."""
    import torch

    ids = tokenizer.encode(SPECIAL_TOKENS[0] + text).ids
    model.eval()
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, length):
            window = torch.tensor([ids[start : start + length + 1]])
            logits = model(input_ids=window[:, :-1]).logits.float()
            loss = torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum")
            total += loss.item()
    return Score(tokens=len(ids) - 1, bytes=len(text.encode()), loss=total / (len(ids) - 1))


def save(model: Any, tokenizer: Tokenizer, source: Path, output: Path) -> None:
    """Write the checkpoint folder: bf16 weights, the tokenizer, and the JSON files of ``source``.

    ``save_pretrained`` stores experts one by one and a tied head once, as published. The ``config.json`` it
    writes is replaced: transformers 5 spells ``dtype`` and ``rope_parameters``, published files do not.
    """
    import torch

    texts = {name: (source / name).read_text(encoding="utf-8") for name in JSON_FILES}
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save(str(output / "tokenizer.json"))
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")


def evaluate(folder: Path) -> str:
    """Held-out score and a greedy sample of a checkpoint folder, computed by transformers in fp32."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode('The "with" statement').ids
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=120, do_sample=False)[0].tolist()
    return f"held out: {score(model, tokenizer, held_out_text())}\nsample:\n{tokenizer.decode(tokens)}"


def main(arguments: list[str] | None = None) -> int:
    """Train one checkpoint, or score one that exists."""
    parser = argparse.ArgumentParser(description="Train or score a small test checkpoint.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", choices=sorted(CHECKPOINTS), help="which shape to train")
    what.add_argument("--evaluate", type=Path, metavar="DIR", help="score this checkpoint on held_out.txt")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to write (with --model)")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the recipe's")
    options = parser.parse_args(arguments)
    if options.model and options.output is None:
        parser.error("--model needs --output")
    import torch

    torch.set_num_threads(1)
    if options.evaluate:
        print(evaluate(options.evaluate))
        return 0
    recipe = Recipe() if options.steps is None else Recipe(steps=options.steps)
    torch.manual_seed(recipe.seed)
    documents = training_documents(read_topics())
    tokenizer = train_tokenizer(documents)
    model = build_model(CHECKPOINTS[options.model] / "config.json")
    print(f"{sum(map(len, documents))} characters, {sum(p.numel() for p in model.parameters())} parameters")
    train(model, tokenizer, documents, recipe)
    save(model, tokenizer, CHECKPOINTS[options.model], options.output)
    print(evaluate(options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
