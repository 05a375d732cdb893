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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from q2export.package.reader import Check, Package
    from q2export.runtime.backends.base import Backend
    from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from q2export.runtime.chat import ChatTemplate
    from q2export.runtime.engine import Engine
    from q2export.runtime.generation_config import GenerationDefaults
    from q2export.runtime.op_profile import OperatorProfile
    from q2export.runtime.tokenizer import Tokenizer

__all__ = ["check_loads", "load", "profile"]

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
        check: how much of the package is checked first, see :func:`q2export.package.reader.read_package`.

    Raises:
        PackageError: the package is damaged, incomplete, holds no engine, or was made for another version,
            library or GPU.
        ConfigError: its tokenizer, template or generation configuration is malformed.
        MissingDependencyError: a library the package needs is not installed.
    """
    from q2export.package.reader import read_package
    from q2export.runtime.engine import Engine

    opened = read_package(package, check)
    texts = _read_texts(opened)
    return Engine(
        _open_backend(opened, threads, prepack),
        tokenizer=texts.tokenizer,
        defaults=texts.defaults,
        chat_template=texts.chat_template,
    )


def check_loads(package: Path | str) -> None:
    """Open a package as :func:`load` does, and let it go.

    Of a TensorRT package everything is read but the engine, which only its GPU can open.

    Raises:
        Q2ExportError: what ``load`` would raise.
    """
    from q2export.package.reader import read_package
    from q2export.runtime.engine import check_vocabulary

    opened = read_package(package)
    texts = _read_texts(opened)
    check_vocabulary(opened.manifest.engine.vocab_size, texts.tokenizer, texts.defaults)
    if opened.manifest.engine.tensorrt is None:
        _open_backend(opened, threads=1, prepack=False)


class _Texts(NamedTuple):
    """What a package holds besides its engine."""

    tokenizer: Tokenizer | None
    defaults: GenerationDefaults
    chat_template: ChatTemplate | None


def _read_texts(opened: Package) -> _Texts:
    from q2export.runtime.chat import load_chat_template
    from q2export.runtime.generation_config import read_generation_defaults
    from q2export.runtime.tokenizer import load_tokenizer

    defaults = read_generation_defaults(opened.folder)
    for field in defaults.unsupported:
        _log.warning("generation_config.json: %s is not supported and has no effect", field)
    tokenizer = load_tokenizer(opened.folder)
    special_tokens = {} if tokenizer is None else tokenizer.special_tokens
    return _Texts(tokenizer, defaults, load_chat_template(opened.folder, special_tokens))


def profile(
    package: Path | str,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    repeat: int = 3,
    warmup: int = 1,
    threads: int | None = None,
    prepack: bool | None = None,
) -> OperatorProfile:
    """Generate with ONNX Runtime's profiler on: where the time goes, operator by operator and node by node.

    Args:
        package: the folder that ``q2export build`` wrote, for ONNX Runtime.
        prompts: token ids, all prompts of the same length.
        new_tokens: to generate after each prompt, at least 2.
        repeat: measured runs.
        warmup: runs before those.
        threads, prepack: as in :func:`load`.

    Raises:
        PackageError: as in :func:`load`, or the package is not for ONNX Runtime.
        GenerationError: batch or tokens are more than the engine was built for.
    """
    import tempfile

    import numpy as np

    from q2export.errors import PackageError
    from q2export.package.reader import read_package
    from q2export.runtime.op_profile import profile_operators

    opened = read_package(package)
    if opened.manifest.target != "onnxruntime":
        raise PackageError(
            f"{opened.folder}: built for target {opened.manifest.target!r}; operators are profiled "
            "in packages for onnxruntime only"
        )
    with tempfile.TemporaryDirectory() as folder:
        backend = _open_onnxruntime(opened, threads, prepack, Path(folder) / "trace")
        ids = np.array(prompts, np.int64)
        return profile_operators(backend, ids, new_tokens, repeat=repeat, warmup=warmup)


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
    return _open_onnxruntime(opened, threads, prepack, None)


def _open_onnxruntime(
    opened: Package, threads: int | None, prepack: bool | None, profile: Path | None
) -> OnnxRuntimeBackend:
    """Load it as asked, else as the package's profile says."""
    from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend

    folder, manifest = opened.folder, opened.manifest
    if threads is None:
        threads = manifest.threads
    if prepack is None:
        prepack = manifest.prepacks
    return OnnxRuntimeBackend(folder, manifest.engine, threads=threads, prepack=prepack, profile=profile)
