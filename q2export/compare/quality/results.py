"""What a quality comparison found: frozen, stored as JSON (``quality.json``). Divergences are in nats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from q2export.compare.report.stored import StoredReport
from q2export.contracts.quantization import PackedQuantization, QualityThresholds
from q2export.package.sections import Measured


@dataclass(frozen=True)
class WeightQuality:
    """One quantized weight.

    Attributes:
        name: Hugging Face name.
        shape: ``(out, in)``.
        relative_error: root mean square of the difference over that of the weight.
        stored_bytes: of codes, scales and zero points.
    """

    name: str
    shape: tuple[int, ...]
    relative_error: float
    stored_bytes: int


@dataclass(frozen=True)
class LayerQuality:
    """One decoder layer on the text.

    Attributes:
        name: module path.
        output_error: error of what the layer adds to the residual stream, given the input it has in the
            unquantized model, relative to that addition; root mean squares over all tokens.
        accumulated_error: difference of the residual streams after the layer, every layer before it
            quantized too, relative to the unquantized one.
    """

    name: str
    output_error: float
    accumulated_error: float


@dataclass(frozen=True)
class TextQuality:
    """Logits on the text, position by position, over ``windows`` pieces of it.

    Attributes:
        tokens: positions compared.
        reference_perplexity, quantized_perplexity: exp of the mean negative log-likelihood of a next token.
        mean_kl, max_kl: KL(unquantized || quantized) per token.
        top1_agreement: fraction of positions at which both rank the same token first.
    """

    name: str
    windows: int
    tokens: int
    reference_perplexity: float
    quantized_perplexity: float
    mean_kl: float
    max_kl: float
    top1_agreement: float

    @property
    def perplexity_increase(self) -> float:
        """``quantized / reference - 1``; negative where quantizing happened to help."""
        return self.quantized_perplexity / self.reference_perplexity - 1


@dataclass(frozen=True)
class QualityReport(StoredReport):
    """The outcome.

    Attributes:
        model: the unquantized model. quantized: what is compared with it.
        measured: whose logits: those of the ``engine``, or those that ``pytorch`` computes from the quantized
            weights.
        quantization: how it is quantized.
        thresholds: what is allowed; None judges nothing.
        text: logits on a text. layers, weights: in order.
        reference_bytes, quantized_bytes: of all weights.
        command: repeats the comparison; empty where none does. environment: versions of what took part.
    """

    SCHEMA_VERSION: ClassVar[int] = 3
    LABEL: ClassVar[str] = "quality report"

    model: str
    quantized: str
    measured: Measured
    quantization: PackedQuantization
    thresholds: QualityThresholds | None
    text: TextQuality
    layers: tuple[LayerQuality, ...]
    weights: tuple[WeightQuality, ...]
    reference_bytes: int
    quantized_bytes: int
    command: str
    environment: Mapping[str, str]

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence per limit that is broken."""
        return tuple(_failures(self.text, self.thresholds)) if self.thresholds else ()

    @property
    def logits_of(self) -> str:
        """:attr:`measured` for people."""
        return "the engine" if self.measured == "engine" else "PyTorch, from the quantized weights"


def _failures(text: TextQuality, limits: QualityThresholds) -> Iterator[str]:
    if not text.perplexity_increase <= limits.max_perplexity_increase:
        yield (
            f"perplexity rises by {text.perplexity_increase:+.2%}, from {text.reference_perplexity:.4f} to "
            f"{text.quantized_perplexity:.4f}; at most {limits.max_perplexity_increase:+.2%} is allowed"
        )
    if not text.mean_kl <= limits.max_mean_kl:
        yield f"mean KL divergence {text.mean_kl:.4g} nats exceeds {limits.max_mean_kl:.4g}"
    if not text.top1_agreement >= limits.min_top1_agreement:
        yield f"top-1 agreement {text.top1_agreement:.2%} is below {limits.min_top1_agreement:.2%}"
