"""Reports as JSON: written with their verdict, and read back only if verdict and figures agree."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from q2export.errors import ParityError
from q2export.strict.codec import Source, from_plain, to_plain

T = TypeVar("T", bound="StoredReport")

_DERIVED = ("passed", "failures")


class StoredReport:
    """Base of the frozen dataclasses that are reports; each says which limits it breaks.

    Attributes:
        SCHEMA_VERSION: of the JSON document; another one is not read.
        LABEL: what the document is called in messages where it has no file.
    """

    SCHEMA_VERSION: ClassVar[int]
    LABEL: ClassVar[str]

    if TYPE_CHECKING:  # a field of one report, a property of the other

        @property
        def failures(self) -> tuple[str, ...]:
            """One sentence per limit that is broken."""

    @property
    def passed(self) -> bool:
        """Whether every limit held."""
        return not self.failures

    def document(self) -> dict[str, Any]:
        """The report as plain data, with the verdict."""
        verdict = {"passed": self.passed, "failures": list(self.failures)}
        return {"schema_version": self.SCHEMA_VERSION, **verdict, **to_plain(self)}

    def to_json(self) -> str:
        """:meth:`document` as strict JSON (no NaN or infinity), indented."""
        return json.dumps(self.document(), indent=2, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls: type[T], text: str, label: str | None = None) -> T:
        """Read what :meth:`to_json` wrote; ``label`` names the file in messages.

        Raises:
            ParityError: the text is not JSON or of another schema version, a field is missing, unknown or of
                the wrong type, or the verdict is not that of the figures.
        """
        label = label or cls.LABEL
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ParityError(f"{label}: not JSON ({error}); run 'q2export verify' again") from error
        version = document.pop("schema_version", None) if isinstance(document, dict) else None
        if version != cls.SCHEMA_VERSION:
            raise ParityError(
                f"{label}: expected schema_version {cls.SCHEMA_VERSION}, found {version!r}; "
                "run 'q2export verify' again"
            )
        stored = {name: document.get(name) for name in _DERIVED}
        fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        report: T = from_plain(
            cls,
            {name: value for name, value in document.items() if name not in _DERIVED or name in fields},
            Source(label, ParityError),
        )
        for name, found in (("passed", report.passed), ("failures", list(report.failures))):
            if stored[name] != found or type(stored[name]) is not type(found):
                raise ParityError(f"{label}: {name!r} is {stored[name]!r}, but its figures give {found!r}")
        return report
