"""A Qwen2-shaped decoder in numpy: the reference, and an engine with the same weights or planted faults.

Both run in float32; the engine sums its matrix products in another order: they differ by honest rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from q2export.compare.verify.activations import Activation
from q2export.compare.verify.results import RunInfo
from q2export.contracts.profile import ParityThresholds
from q2export.exporter.reference import Run

HEADS, HEAD_DIM, KV_HEADS, VOCAB = 6, 4, 2, 61
HIDDEN, INTERMEDIATE = HEADS * HEAD_DIM, 40
THRESHOLDS = ParityThresholds(
    max_abs_logit_error=1e-4, max_kl_divergence=1e-6, min_cosine_similarity=0.99999, min_top1_agreement=1.0
)
INFO = RunInfo("engine", "model", "q2export verify engine --model model", {"numpy": np.__version__})

Weights = dict[str, np.ndarray]
Tap = Callable[[str, np.ndarray], np.ndarray]


def make_weights(layers: int, seed: int = 0) -> Weights:
    """Random weights of moderate size, Hugging Face names."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    weights = {
        "model.embed_tokens": normal(VOCAB, HIDDEN, scale=1.0),
        "model.norm": 1 + normal(HIDDEN, scale=0.1),
        "lm_head": normal(VOCAB, HIDDEN, scale=0.5),
    }
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            weights[f"model.layers.{layer}.{name}"] = normal(*shape, scale=shape[1] ** -0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}"] = 1 + normal(HIDDEN, scale=0.1)
    return weights


def tiny_activations(layers: int) -> list[Activation]:
    """Every activation, in order."""
    inner = {
        "input_layernorm": "RMSNormalization",
        "self_attn.q_proj": "Gemm",
        "self_attn.k_proj": "Gemm",
        "self_attn.v_proj": "Gemm",
        "self_attn.attention": "Q2GroupQueryAttention",
        "self_attn.o_proj": "Gemm",
        "post_attention_layernorm": "RMSNormalization",
        "mlp": "Gemm",
    }
    found = [Activation("model.embed_tokens", None, "Gather")]
    for layer in range(layers):
        found += [Activation(f"model.layers.{layer}.{name}", layer, op) for name, op in inner.items()]
        found.append(Activation(f"model.layers.{layer}", layer, "Add"))
    return [*found, Activation("model.norm", None, "RMSNormalization"), Activation("lm_head", None, "Gemm")]


@dataclass(frozen=True)
class TinyModel:
    """One side of a comparison.

    ``reverse`` sums matrix products backwards; ``rope_base`` replaces the base 10000 in the given layers;
    ``tap`` may replace a tensor after it is computed.
    """

    weights: Weights
    layers: int
    reverse: bool = False
    rope_base: dict[int, float] = field(default_factory=dict)
    tap: Tap = lambda name, value: value

    def forward(self, tokens: Sequence[int]) -> dict[str, np.ndarray]:
        """Every activation, ``[tokens, width]`` float32."""
        found: dict[str, np.ndarray] = {}

        def keep(name: str, value: np.ndarray) -> np.ndarray:
            found[name] = self.tap(name, value.astype(np.float32))
            return found[name]

        x = keep("model.embed_tokens", self.weights["model.embed_tokens"][list(tokens)])
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            h = keep(f"{at}.input_layernorm", self._norm(x, f"{at}.input_layernorm"))
            q, k, v = (keep(f"{at}.self_attn.{n}", self._linear(h, f"{at}.self_attn.{n}")) for n in QKV)
            a = keep(f"{at}.self_attn.attention", self._attention(q, k, v, self.rope_base.get(layer, 1e4)))
            x = x + keep(f"{at}.self_attn.o_proj", self._linear(a, f"{at}.self_attn.o_proj"))
            h = keep(f"{at}.post_attention_layernorm", self._norm(x, f"{at}.post_attention_layernorm"))
            gate, up = self._linear(h, f"{at}.mlp.gate_proj"), self._linear(h, f"{at}.mlp.up_proj")
            x = x + keep(f"{at}.mlp", self._linear(gate / (1 + np.exp(-gate)) * up, f"{at}.mlp.down_proj"))
            x = keep(at, x)
        keep("lm_head", self._linear(keep("model.norm", self._norm(x, "model.norm")), "lm_head"))
        return found

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        weight = self.weights[name]
        return x[:, ::-1] @ weight[:, ::-1].T if self.reverse else x @ weight.T

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(1e-6)) * self.weights[name]

    def _attention(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, base: float) -> np.ndarray:
        n = len(q)
        q, k, v = (t.reshape(n, -1, HEAD_DIM).transpose(1, 0, 2) for t in (q, k, v))  # [heads, n, HEAD_DIM]
        q, k = rotate(q, base), np.repeat(rotate(k, base), HEADS // KV_HEADS, axis=0)
        scores = q @ k.transpose(0, 2, 1) / np.float32(HEAD_DIM**0.5) + np.triu(np.full((n, n), -1e9), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = weights.astype(np.float32) @ np.repeat(v, HEADS // KV_HEADS, axis=0)
        return out.transpose(1, 0, 2).reshape(n, HIDDEN)


QKV = ("q_proj", "k_proj", "v_proj")


def rotate(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary embedding of ``[heads, tokens, HEAD_DIM]``, halves rotated against each other."""
    half = HEAD_DIM // 2
    angles = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@dataclass
class TinyReference:
    """Stands for ``CheckpointReference``; ``asked`` records each call."""

    model: TinyModel
    asked: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def run(
        self, sequences: Sequence[Sequence[int]], capture: Collection[str] = (), routers: object = None
    ) -> Run:
        """As the probe does."""
        self.asked.append((len(sequences), tuple(capture)))
        runs = [self.model.forward(tokens) for tokens in sequences]
        return Run([r["lm_head"] for r in runs], {name: [r[name] for r in runs] for name in capture})


@dataclass(frozen=True)
class TinyEngine:
    """Stands for an ``EngineProbe``; ``decoder`` generates and ``exposed`` is captured, if not ``model``."""

    model: TinyModel
    decoder: TinyModel | None = None
    exposed: TinyModel | None = None
    hidden: Collection[str] = ()

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        """As the probe does."""
        return self.model.forward(tokens)["lm_head"]

    def greedy(self, prompt: Sequence[int], n: int) -> list[int]:
        """As the probe does."""
        tokens = list(prompt)
        for _ in range(n):
            tokens.append(int((self.decoder or self.model).forward(tokens)["lm_head"][-1].argmax()))
        return tokens[len(prompt) :]

    def capture(self, tokens: Sequence[int], names: Collection[str]) -> dict[str, np.ndarray]:
        """As the probe does."""
        found = (self.exposed or self.model).forward(tokens)
        return {name: found[name] for name in names}

    def activations(self) -> list[Activation]:
        """As the probe does."""
        return [one for one in tiny_activations(self.model.layers) if one.name not in self.hidden]


def pair(layers: int, seed: int = 0) -> tuple[TinyReference, TinyModel]:
    """A reference and a healthy engine model of the same weights."""
    weights = make_weights(layers, seed)
    return TinyReference(TinyModel(weights, layers)), TinyModel(weights, layers, reverse=True)


def perturb(model: TinyModel, name: str, index: tuple[int, ...], amount: float) -> TinyModel:
    """The model with one element of one weight changed."""
    weight = model.weights[name].copy()
    weight[index] += amount
    return replace(model, weights={**model.weights, name: weight})


PROMPTS = ([3, 14, 15, 9, 26, 5], [35, 8, 9, 7], [9])
