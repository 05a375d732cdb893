"""The runtime: a built engine package, without PyTorch.

::

    from q2export.runtime import load

    engine = load("path/to/package")
    print(engine.generate("Once upon a time", max_new_tokens=50).text)

Importing this module loads neither NumPy nor ONNX Runtime nor TensorRT; :func:`load` does, as the package
needs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2export.package_reader import Check, Package
    from q2export.runtime.backends.base import Backend
    from q2export.runtime.engine import Engine

__all__ = ["load"]

_log = logging.getLogger(__name__)


def load(
    package: Path | str, *, threads: int | None = None, prepack: bool | None = None, check: Check = "fast"
) -> Engine:
    """Open an engine package, on the CPU or the GPU it was built for.

    Args:
        package: the folder that ``q2export build`` wrote.
        threads: CPU threads of an ONNX Runtime engine; 0 is one per core, None is what the package's profile
            says.
        prepack: keep a copy of the matrices in memory in the kernels' own layout, which decodes faster and
            loads slower; None is what the package's profile says (``auto``: only if the weights had to be
            converted).
        check: how much of the package is checked first, see :func:`q2export.package_reader.read_package`.

    Raises:
        PackageError: the package is damaged, incomplete, holds no engine, or was made for another version,
            library or GPU.
        ConfigError: its tokenizer, template or generation configuration is malformed.
        MissingDependencyError: a library the package needs is not installed.
    """
    from q2export.package_reader import read_package
    from q2export.runtime.chat import load_chat_template
    from q2export.runtime.engine import Engine
    from q2export.runtime.generation_config import read_generation_defaults
    from q2export.runtime.tokenizer import load_tokenizer

    opened = read_package(package, check)
    folder = opened.folder
    defaults = read_generation_defaults(folder)
    for field in defaults.unsupported:
        _log.warning("generation_config.json: %s is not supported and has no effect", field)
    tokenizer = load_tokenizer(folder)
    special_tokens = {} if tokenizer is None else tokenizer.special_tokens
    return Engine(
        _open_backend(opened, threads, prepack),
        tokenizer=tokenizer,
        defaults=defaults,
        chat_template=load_chat_template(folder, special_tokens),
    )


def _open_backend(opened: Package, threads: int | None, prepack: bool | None) -> Backend[Any]:
    """Load the engine with what the manifest says runs it."""
    from q2export.errors import PackageError

    folder, manifest = opened.folder, opened.manifest
    if manifest.engine.tensorrt is not None:
        from q2export.runtime.backends.tensorrt.session import open_backend

        return open_backend(folder, manifest.engine, manifest.engine.tensorrt, opened.rebuild_command())
    if manifest.target != "onnxruntime":
        raise PackageError(
            f"{folder}: holds a graph for target {manifest.target!r}, no engine; build one with: "
            f"{opened.rebuild_command()}"
        )
    from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend

    if threads is None:
        from_profile = manifest.profile.get("threads")
        threads = from_profile if isinstance(from_profile, int) else 0
    if prepack is None:
        asked = manifest.profile.get("prepack", "auto")
        prepack = asked == "always" or (asked == "auto" and manifest.weights.converted_bytes > 0)
    return OnnxRuntimeBackend(folder, manifest.engine, threads=threads, prepack=prepack)
