"""Writing a model repository of Triton: what ``q2export triton`` does."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from q2export.contracts.progress import progress_bar
from q2export.errors import OptionError, PackageError
from q2export.package.manifest import MANIFEST_NAME
from q2export.package.output import staged_output
from q2export.package.placement import copy_file, require_free_space
from q2export.package.reader import Package, read_package
from q2export.package.writer import written_files as files_of_package
from q2export.runtime.triton.settings import ModelSettings
from q2export.version import __version__

_CONFIG, _MODEL, _VERSION, _PACKAGE = "config.pbtxt", "model.py", "1", "package"
_WRITTEN_BY = "# Written by q2export triton"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# Name, type, size, whether a request may leave it out; the names are those of Triton's backend of vLLM, and
# input_ids and output_ids those of TensorRT-LLM's.
INPUTS = (
    ("text_input", "TYPE_STRING", 1, True),
    ("input_ids", "TYPE_INT32", -1, True),
    ("stream", "TYPE_BOOL", 1, True),
    ("sampling_parameters", "TYPE_STRING", 1, True),
    ("exclude_input_in_output", "TYPE_BOOL", 1, True),
)
OUTPUTS = (
    ("text_output", "TYPE_STRING", -1),
    ("output_ids", "TYPE_INT32", -1),
    ("finish_reason", "TYPE_STRING", -1),
)

_MODEL_SOURCE = '''"""What Triton's Python backend runs; all of it is in q2export.runtime.triton.model."""

import triton_python_backend_utils as pb_utils
from q2export.runtime.triton.model import Model


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args):
        """Load the package."""
        self.model = Model(pb_utils, args)

    def execute(self, requests):
        """Begin what the requests ask for; answers are sent as they come."""
        self.model.execute(requests)

    def finalize(self):
        """End what runs."""
        self.model.close()
'''


@dataclass(frozen=True)
class WrittenModel:
    """A model in a repository.

    Attributes:
        folder: of the model.
        name: by which Triton serves it.
        package: that it loads; where it was copied to, if it was.
    """

    folder: Path
    name: str
    package: Path


def write_model(
    settings: ModelSettings,
    repository: Path,
    *,
    name: str | None = None,
    copy: bool = False,
    overwrite: bool = False,
) -> WrittenModel:
    """Write a model into a repository, which may hold others; all of it, or nothing.

    Args:
        settings: with the package.
        repository: folder that Triton is started with; made where there is none.
        name: of the model; None is that of the package's folder.
        copy: copy the package into the repository; without it, the configuration says where it is.
        overwrite: replace a model of this name that q2export wrote.

    Raises:
        PackageError: the package is damaged or holds no engine, or the model is there already.
        OptionError: a setting contradicts the package, or the name is none for Triton.
    """
    package = read_package(settings.package)
    name = package.folder.resolve().name if name is None else name
    if not _NAME.fullmatch(name):
        raise OptionError("name", f"must be letters, digits, '.', '_' and '-', found {name!r}; give another")
    _check(settings, package)
    kind = "KIND_CPU" if package.manifest.target == "onnxruntime" else "KIND_MODEL"
    inside = replace(settings, package=Path(_PACKAGE) if copy else package.folder.resolve())
    with staged_output(repository / name, overwrite, written_files) as staging:
        version = staging.folder / _VERSION
        version.mkdir()
        (staging.folder / _CONFIG).write_text(_config(name, kind, inside), encoding="utf-8")
        (version / _MODEL).write_text(_MODEL_SOURCE, encoding="utf-8")
        if copy:
            _copy_package(package, version / _PACKAGE)
    return WrittenModel(staging.output, name, staging.output / _VERSION / inside.package)


def written_files(folder: Path) -> set[str]:
    """Files of a model, which alone may be replaced.

    Raises:
        PackageError: ``folder`` is no model that q2export wrote.
    """
    config, version = folder / _CONFIG, folder / _VERSION
    try:
        ours = config.read_text(encoding="utf-8").startswith(_WRITTEN_BY)
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise PackageError(f"its {_CONFIG} was not written by q2export")
    compiled = version.glob("__pycache__/model.*.pyc")  # by Triton
    files = {_CONFIG, f"{_VERSION}/{_MODEL}", *(path.relative_to(folder).as_posix() for path in compiled)}
    if (version / _PACKAGE / MANIFEST_NAME).exists():
        files |= {f"{_VERSION}/{_PACKAGE}/{file}" for file in files_of_package(version / _PACKAGE)}
    return files


def _check(settings: ModelSettings, package: Package) -> None:
    manifest = package.manifest
    if manifest.profile is None:
        raise PackageError(
            f"{package.folder}: holds a graph for target {manifest.target!r}, no engine; make one with "
            "q2export build"
        )
    if settings.threads is not None and manifest.target != "onnxruntime":
        raise OptionError("threads", f"is for engines on the CPU; {package.folder} holds one for a GPU")
    most = manifest.engine.max_batch
    if settings.rows is not None and not 1 <= settings.rows <= most:
        raise OptionError(
            "rows", f"must be 1 to {most}, what the engine was built for, found {settings.rows}"
        )


def _copy_package(package: Package, target: Path) -> None:
    files = {name: record.bytes for name, record in package.manifest.files.items()}
    target.mkdir()
    require_free_space(target, sum(files.values()), "a copy of the package")
    with progress_bar(f"copying {package.folder.name}", sum(files.values())) as advance:
        for name in (*files, MANIFEST_NAME):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy_file(package.folder / name, target / name, advance)


def _config(name: str, kind: str, settings: ModelSettings) -> str:
    inputs = [
        f"  {{ name: {_quoted(each)} data_type: {kind_} dims: [ {size} ] optional: {str(optional).lower()} }}"
        for each, kind_, size, optional in INPUTS
    ]
    outputs = [
        f"  {{ name: {_quoted(each)} data_type: {kind_} dims: [ {size} ] }}" for each, kind_, size in OUTPUTS
    ]
    parameters = [
        f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(text)} }} }}"
        for key, text in settings.parameters().items()
    ]
    return "\n".join(
        [
            f"{_WRITTEN_BY}, version {__version__}.",
            f"name: {_quoted(name)}",
            'backend: "python"',
            "max_batch_size: 0 # requests share steps within the model",
            "model_transaction_policy { decoupled: true }",
            "input [",
            ",\n".join(inputs),
            "]",
            "output [",
            ",\n".join(outputs),
            "]",
            f"instance_group [ {{ count: 1 kind: {kind} }} ]",
            *parameters,
            "",
        ]
    )


def _quoted(text: str) -> str:
    """A string of the text format; control characters, which JSON writes as \\u, cannot be in it."""
    if any(ord(character) < 32 for character in text):
        raise PackageError(f"{text!r}: {_CONFIG} cannot hold a control character; rename the folder")
    return json.dumps(text, ensure_ascii=False)
