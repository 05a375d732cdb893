"""How a model of Triton is set up: what ``config.pbtxt`` says beyond its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2export.errors import PackageError
from q2export.strict.suggest import nearest


@dataclass(frozen=True)
class ModelSettings:
    """The ``parameters`` of a model's configuration.

    Attributes:
        package: the engine package; a relative path is seen from the folder of the model's version.
        threads: of an engine on the CPU; None is what the package's profile says.
        rows: most texts generated at once; None is what the package was built for.
        max_queue: requests that may wait beside those.
        allow_special_tokens: the text of a special token in ``text_input`` becomes that token.
    """

    package: Path
    threads: int | None = None
    rows: int | None = None
    max_queue: int = 256
    allow_special_tokens: bool = False

    def parameters(self) -> dict[str, str]:
        """The settings as text; what is None is left out."""
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in given.items()
            if value is not None
        }

    @classmethod
    def of(cls, config: Mapping[str, Any], version_folder: Path) -> ModelSettings:
        """The settings of a configuration, as Triton hands it to the model.

        Args:
            config: ``config.pbtxt`` as JSON.
            version_folder: with the ``model.py``.

        Raises:
            PackageError: naming the parameter.
        """
        given = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        name, names = config.get("name", "model"), [each.name for each in dataclasses.fields(cls)]
        # Triton's own, for its Python backend
        values = {key: text for key, text in given.items() if key not in _TRITONS}
        for key in values:
            if key not in names:
                raise PackageError(f"config.pbtxt of {name}: no parameter {key!r}{nearest(key, names)}")
        if "package" not in values:
            raise PackageError(f"config.pbtxt of {name}: the parameter 'package' is missing")
        numbers = {key: _number(name, key, values[key]) for key in ("threads", "rows") if key in values}
        return cls(
            package=version_folder / values["package"],
            max_queue=_number(name, "max_queue", values.get("max_queue", str(cls.max_queue))),
            allow_special_tokens=_flag(name, values.get("allow_special_tokens", "false")),
            **numbers,
        )


_TRITONS = ("EXECUTION_ENV_PATH", "FORCE_CPU_ONLY_INPUT_TENSORS")


def _number(model: str, key: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise PackageError(f"config.pbtxt of {model}: {key} must be a whole number, found {text!r}")
    return int(text)


def _flag(model: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise PackageError(
            f"config.pbtxt of {model}: allow_special_tokens must be true or false, found {text!r}"
        )
    return text == "true"
