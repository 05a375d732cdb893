"""Finding where an engine leaves the reference: first the stage, then the tensor within a layer.

Stages are the embedding, the residual stream after each layer, the final norm and the head. What counts is
the error a stage adds, not the error it inherits: rounding grows through a deep model, and a fault in layer 3
is larger still in layer 20.

The error of an element is relative to the scale at which it was computed::

    max_error = max |engine - reference| / max(|reference|, |previous|, rms(row))

where ``row`` is the reference's vector of that token and ``previous`` the residual stream one stage earlier.
The row's rms keeps elements near zero from looking wrong. ``previous`` is for the massive activations of
trained models (Sun et al., 2024, arXiv:2402.17762): one channel of the first token reaches thousands of times
the rest and is subtracted again by a late layer, which leaves the rounding of the large value in a small one.

A stage diverges if its error exceeds ``growth * (error of its input) + floor`` (:class:`NoiseModel`). If none
does although the logits are wrong, the drift is gradual, and the stage with the largest ratio is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from q2export.compare.verify.activations import Activation
from q2export.compare.verify.metrics import (
    Float64Array,
    first_non_finite,
    require_finite,
    require_same_shape,
    row_blocks,
)
from q2export.compare.verify.results import ActivationDifference, Element
from q2export.runtime.backends.base import Float32Array

QUIET_ROW = 1e-3  # a row is judged at no less than this fraction of the tensor's rms


@dataclass(frozen=True)
class NoiseModel:
    """How much error rounding explains.

    Attributes:
        floor: relative error a stage may add to exact inputs.
        growth: factor by which a stage may enlarge the relative error of its inputs.
    """

    floor: float
    growth: float = 16.0


# 128 units of roundoff (2**-24). Healthy float32 stages add about 5e-7, the floor divided by the growth.
FLOAT32_NOISE = NoiseModel(floor=128 * 2.0**-24)


def stage_differences(
    stages: Sequence[Activation],
    reference: Mapping[str, Float32Array],
    engine: Mapping[str, Float32Array],
    noise: NoiseModel,
) -> tuple[ActivationDifference, ...]:
    """The error curve: one :class:`ActivationDifference` per stage, in order.

    Args:
        stages: those for which ``is_stage`` holds, in the order of computation.
        reference: ``[tokens, width]`` per stage name; ``engine`` likewise.
        noise: what rounding explains.

    Raises:
        ParityError: if shapes differ or a reference value is not finite.
    """
    found: list[ActivationDifference] = []
    previous: Float32Array | None = None
    input_error = 0.0
    for stage in stages:
        expected, actual = reference[stage.name], engine[stage.name]
        found.append(_measure(stage, expected, actual, previous, input_error, noise))
        # The next stage inherits the error relative to the stream as it is now, cancelled or not.
        own_scale = _measure(stage, expected, actual, None, input_error, noise)
        input_error = input_error if own_scale.max_error is None else own_scale.max_error
        previous = expected
    return tuple(found)


def layer_differences(
    activations: Sequence[Activation],
    reference: Mapping[str, Float32Array],
    engine: Mapping[str, Float32Array],
    output: ActivationDifference,
    noise: NoiseModel,
) -> tuple[ActivationDifference, ...]:
    """Differences of the activations inside one layer, in order, ending with the layer's output.

    Each may enlarge the largest error before it.

    Args:
        activations: those within the layer, in the order of computation.
        reference: ``[tokens, width]`` per name; ``engine`` likewise.
        output: the layer's entry of :func:`stage_differences`.
        noise: what rounding explains.

    Raises:
        ParityError: if shapes differ or a reference value is not finite.
    """
    found: list[ActivationDifference] = []
    input_error = (output.tolerance - noise.floor) / noise.growth
    for one in activations:
        measured = _measure(one, reference[one.name], engine[one.name], None, input_error, noise)
        found.append(measured)
        input_error = max(input_error, measured.max_error or 0.0)
    return (*found, output)


def first_divergence(differences: Sequence[ActivationDifference]) -> ActivationDifference:
    """The first one that diverges, else the one whose error is the largest multiple of its tolerance.

    Args:
        differences: at least one, in the order of computation.
    """
    for one in differences:
        if one.diverges:
            return one
    return max(differences, key=lambda one: (one.max_error or 0.0) / one.tolerance)


def _measure(
    info: Activation,
    reference: Float32Array,  # [tokens, width]
    engine: Float32Array,  # [tokens, width]
    previous: Float32Array | None,  # [tokens, width], or another width, then ignored
    input_error: float,
    noise: NoiseModel,
) -> ActivationDifference:
    require_same_shape(reference, engine, info.name)
    require_finite(reference, f"reference {info.name}")
    tensor_rms = _rms(reference)
    tolerance = noise.growth * input_error + noise.floor
    if bad := first_non_finite(engine):
        return ActivationDifference(
            info.name, info.layer, info.op, None, None, None, None, tensor_rms, tolerance, None, bad
        )
    if previous is not None and previous.shape != reference.shape:
        previous = None
    max_abs = sum_abs = sum_error = 0.0
    max_error, worst = -1.0, Element(0, 0, 0.0, 0.0)
    for start, rows in row_blocks(reference):
        expected = rows.astype(np.float64)
        actual = engine[start : start + len(rows)].astype(np.float64)
        before = None if previous is None else previous[start : start + len(rows)]
        error = np.abs(actual - expected)
        relative = error / _scale(expected, before, tensor_rms)
        max_abs, sum_abs = max(max_abs, float(error.max())), sum_abs + float(error.sum())
        sum_error += float(relative.sum())
        token, channel = (int(i) for i in np.unravel_index(int(relative.argmax()), relative.shape))
        if relative[token, channel] > max_error:
            max_error = float(relative[token, channel])
            values = float(expected[token, channel]), float(actual[token, channel])
            worst = Element(start + token, channel, *values)
    return ActivationDifference(
        name=info.name,
        layer=info.layer,
        op=info.op,
        max_abs=max_abs,
        mean_abs=sum_abs / reference.size,
        max_error=max_error,
        mean_error=sum_error / reference.size,
        reference_rms=tensor_rms,
        tolerance=tolerance,
        worst=worst,
        non_finite=None,
    )


def _scale(expected: Float64Array, previous: Float32Array | None, tensor_rms: float) -> Float64Array:
    """``[tokens, width]`` denominators, all positive; a tensor of zeros is judged by absolute error."""
    row_rms = np.sqrt(np.square(expected).mean(axis=1, keepdims=True))
    scale = np.maximum(np.abs(expected), np.maximum(row_rms, QUIET_ROW * tensor_rms))
    if previous is not None:
        scale = np.maximum(scale, np.abs(previous))
    return scale if tensor_rms > 0 else np.ones_like(expected)


def _rms(values: Float32Array) -> float:
    total = math.fsum(float(np.square(rows.astype(np.float64)).sum()) for _, rows in row_blocks(values))
    return math.sqrt(total / values.size)
