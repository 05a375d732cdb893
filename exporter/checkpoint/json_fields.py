"""Typed access to the fields of one JSON object."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from q2export.contracts.limits import MAX_SIZE
from q2export.errors import ConfigError
from q2export.strict.json import shown

_MAX_FLOAT = sys.float_info.max  # an integer beyond it cannot become a float; NaN compares false


@dataclass(frozen=True)
class Fields:
    """The fields of ``data``, each read with its type.

    ``prefix`` goes before the name in messages (``"rope_scaling."``). Every method raises
    :class:`~q2export.errors.ConfigError` when the value has the wrong type or range. An absent field takes
    ``default``; without one it is an error. JSON ``null`` counts as absent only where ``None`` can come back.
    """

    data: Mapping[str, object]
    prefix: str = ""

    def present(self, name: str) -> bool:
        """Whether the field is there and not ``null``."""
        return self.data.get(name) is not None

    def integer(self, name: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """An integer of ``low`` to ``high``; ``true`` and ``24.0`` are not integers."""
        value = self.data.get(name, default)
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(name, f"an integer of {low} to {high}")
        return value

    def optional_integer(self, name: str, low: int = 1, high: int = MAX_SIZE) -> int | None:
        """As :meth:`integer`, or ``None`` when absent."""
        return self.integer(name, low=low, high=high) if self.present(name) else None

    def number(self, name: str, default: float | None = None, low: float | None = None) -> float:
        """A finite number, greater than 0, or at least ``low`` where that is given."""
        value = self.data.get(name, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_FLOAT:
            number = float(value)
            if number > 0 if low is None else number >= low:
                return number
        raise self.wrong(name, "a positive number" if low is None else f"a number of at least {low:g}")

    def optional_number(self, name: str, low: float | None = None) -> float | None:
        """As :meth:`number`, or ``None`` when absent."""
        return self.number(name, low=low) if self.present(name) else None

    def boolean(self, name: str, default: bool) -> bool:
        """``true`` or ``false``; 0, 1 and strings are neither."""
        value = self.data.get(name, default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.data.get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def items(self, name: str, kind: type, kind_name: str) -> tuple[object, ...] | None:
        """A list whose items all have exactly the type ``kind``; ``None`` when absent."""
        if not self.present(name):
            return None
        value = self.data[name]
        if not isinstance(value, list) or any(type(item) is not kind for item in value):
            raise self.wrong(name, f"a list of {kind_name}")
        return tuple(value)

    def object(self, name: str) -> Mapping[str, object] | None:
        """A JSON object; ``None`` when absent."""
        if not self.present(name):
            return None
        value = self.data[name]
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return value

    def wrong(self, name: str, expected: str) -> ConfigError:
        """The error for a field whose value is not ``expected``."""
        if name not in self.data:
            return ConfigError(f"{self.prefix}{name} is missing; expected {expected}")
        return ConfigError(f"{self.prefix}{name}: expected {expected}, found {shown(self.data[name])}")
