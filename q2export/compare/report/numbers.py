"""Numbers as people read them, in the report and in the terminal."""

from __future__ import annotations

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(exponent: int) -> str:
    """``10⁻⁶``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def scientific(value: float, digits: int = 2) -> str:
    """``3.2·10⁻⁶``, or plain figures between 0.01 and 100,000."""
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:.{digits + 1}g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}·{power_of_ten(int(exponent))}"


def percent(share: float) -> str:
    """``99.5%`` of 0.995; never rounded to 100% unless it is."""
    return f"{min(100 * share, 99.9999) if share < 1 else 100:.6g}%"
