"""The runtime: a built engine package, without PyTorch.

::

    from q2export.runtime import load

    engine = load("path/to/package")
    print(engine.generate("Once upon a time", max_new_tokens=50).text)

Importing this module loads neither NumPy nor ONNX Runtime nor TensorRT; :func:`load` does, as the package
needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from q2export.package.reader import Check, Package
    from q2export.runtime.backends.base import Backend
    from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from q2export.runtime.engine import Engine
    from q2export.runtime.op_profile import OperatorProfile

__all__ = ["check_loads", "load", "profile"]


def load(package: Path | str, *, threads: int | None = None, check: Check = "fast") -> Engine:
    """Open an engine package, on the CPU or the GPU it was built for.

    Args:
        package: the folder that ``q2export build`` wrote.
        threads: CPU threads of an engine on the CPU, at most the processors of the machine; 0 is one per
            core, None is what the package's profile says.
        check: how much of the package is checked first, see :func:`q2export.package.reader.read_package`.

    Raises:
        PackageError: the package is damaged, incomplete, holds no engine, or was made for another version,
            library or GPU.
        ConfigError: its tokenizer, template or generation configuration is malformed.
        OptionError: ``threads`` is given for an engine for a GPU.
        MissingDependencyError: a library the package needs is not installed.
    """
    from q2export.package.reader import read_package
    from q2export.runtime.engine import Engine
    from q2export.runtime.text import open_text, warn_of_unsupported

    opened = read_package(package, check)
    text = open_text(opened.folder, opened.manifest.engine.vocab_size)
    warn_of_unsupported(opened.folder, text.defaults)
    return Engine(
        _open_backend(opened, threads),
        tokenizer=text.tokenizer,
        defaults=text.defaults,
        chat_template=text.chat_template,
        name=str(opened.folder),
    )


def check_loads(package: Path | str) -> None:
    """Open a package as :func:`load` does, and let it go.

    Of a package for a GPU everything is read but the engine, which only a GPU can open.

    Raises:
        Q2ExportError: what ``load`` would raise.
    """
    from q2export.package.reader import read_package
    from q2export.runtime.text import open_text

    opened = read_package(package)
    open_text(opened.folder, opened.manifest.engine.vocab_size)
    if opened.manifest.engine.tensorrt is None and opened.manifest.target != "onnxruntime-cuda":
        _open_backend(opened, threads=1)


def profile(
    package: Path | str,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    *,
    repeat: int = 3,
    warmup: int = 1,
    threads: int | None = None,
) -> OperatorProfile:
    """Generate with ONNX Runtime's profiler on: where the time goes, operator by operator and node by node.

    Args:
        package: the folder that ``q2export build`` wrote, for ONNX Runtime.
        prompts: token ids, all prompts of the same length.
        new_tokens: to generate after each prompt, at least 2.
        repeat: measured runs.
        warmup: runs before those.
        threads: as in :func:`load`.

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
        backend = _open_onnxruntime(opened, threads, Path(folder) / "trace")
        ids = np.array(prompts, np.int64)
        return profile_operators(backend, ids, new_tokens, repeat=repeat, warmup=warmup)


def _open_backend(opened: Package, threads: int | None) -> Backend[Any]:
    """Load the engine with what the manifest says runs it."""
    from q2export.errors import PackageError

    folder, manifest = opened.folder, opened.manifest
    if manifest.engine.tensorrt is not None:
        from q2export.errors import OptionError
        from q2export.runtime.backends.tensorrt.executor import open_backend

        if threads is not None:
            raise OptionError("threads", f"is for engines on the CPU; {folder} holds one of TensorRT")
        return open_backend(folder, manifest.engine, manifest.engine.tensorrt, opened.rebuild_command())
    if manifest.target == "onnxruntime-cuda" and manifest.profile is not None:
        from q2export.errors import OptionError
        from q2export.runtime.backends.onnxruntime_cuda.open import open_backend as open_on_cuda

        if threads is not None:
            raise OptionError("threads", f"is for engines on the CPU; {folder} holds one for CUDA")
        return open_on_cuda(folder, manifest.engine, manifest.profile.max_logits)
    if manifest.target != "onnxruntime":
        raise PackageError(
            f"{folder}: holds a graph for target {manifest.target!r}, no engine; make one with q2export build"
        )
    return _open_onnxruntime(opened, threads, None)


def _open_onnxruntime(opened: Package, threads: int | None, profile: Path | None) -> OnnxRuntimeBackend:
    """Load it as asked, else as the package's profile says."""
    from q2export.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from q2export.runtime.cpu import check_threads

    folder, manifest = opened.folder, opened.manifest
    if threads is None:
        threads = manifest.threads
    else:
        check_threads(threads)
    return OnnxRuntimeBackend(folder, manifest.engine, threads=threads, profile=profile)
