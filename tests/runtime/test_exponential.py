"""The exponential of the sampler: close to the true one, and every constant what it is said to be."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np

from q2export.runtime import exponential as module
from q2export.runtime.exponential import exponential


def test_constants_are_to_the_nearest() -> None:
    with localcontext() as context:
        context.prec = 60
        step = Decimal(2).ln() / module.STEPS
        assert (
            tuple(float(Decimal(2) ** (Decimal(j) / module.STEPS)) for j in range(module.STEPS))
            == module.POWERS
        )
        assert float(1 / step) == module.STEPS_PER_UNIT
        assert float(step - Decimal(module.STEP_HIGH)) == module.STEP_LOW
    largest = -module.LOWEST * module.STEPS_PER_UNIT
    assert (module.STEP_HIGH * 2**40).is_integer() and module.STEP_HIGH * 2**40 * largest < 2**53, (
        "exact products"
    )


def test_is_the_exponential_within_a_unit_and_a_fifth() -> None:
    x = np.concatenate((-np.abs(np.random.default_rng(0).standard_normal(5000)) * 60, [0.0, -1e-300, -708.0]))
    with localcontext() as context:
        context.prec = 40
        for value, found in zip(x.tolist(), exponential(x).tolist(), strict=True):
            error = abs(Decimal(found) - Decimal(value).exp()) / Decimal(float(np.spacing(found)))
            assert error < Decimal("1.2"), value


def test_its_ends() -> None:
    assert exponential(np.array([0.0, -708.1, -1e300, -np.inf])).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert exponential(np.empty(0)).shape == (0,)


def test_a_value_has_the_same_bits_wherever_it_stands() -> None:
    x = -np.abs(np.random.default_rng(1).standard_normal(10_001)) * 9
    whole = exponential(x)
    assert np.array_equal(whole[5000:5003], exponential(x[5000:5003]))
    assert whole[9999] == exponential(x[9999:10_000])[0]
