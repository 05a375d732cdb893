"""An engine to be compared: in a finished package, or in one that is being built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from q2export.contracts.commands import command_line
from q2export.package.manifest import EngineInfo
from q2export.package.reader import Package
from q2export.pipeline.job import Job

if TYPE_CHECKING:
    from q2export.compare.verify.engine_probe import EngineProbe


@dataclass(frozen=True)
class EngineUnderTest:
    """Where an engine is and how it is run.

    Attributes:
        folder: a package, perhaps not yet complete.
        info: what it holds.
        threads: CPU threads of an ONNX Runtime engine; 0 is one per core.
        prepack: whether ONNX Runtime keeps its own copy of the matrices, as it will when the engine is used:
            with quantized weights the arithmetic depends on it.
        rebuild_command: for messages.
    """

    folder: Path
    info: EngineInfo
    threads: int
    prepack: bool
    rebuild_command: str

    @classmethod
    def of_package(cls, package: Package, threads: int | None) -> EngineUnderTest:
        """The engine of a package; ``threads`` None is what its profile says."""
        manifest = package.manifest
        threads = manifest.threads if threads is None else threads
        command = package.rebuild_command()
        return cls(package.folder, manifest.engine, threads, manifest.prepacks, command)

    @classmethod
    def of_build(cls, folder: Path, job: Job, info: EngineInfo, *, prepack: bool) -> EngineUnderTest:
        """The engine in ``folder``, whose package has no manifest yet."""
        command = command_line("build", "--model", job.model.id, "--profile", job.profile.name)
        return cls(folder, info, job.profile.threads, prepack, command)

    def in_float32(self) -> EngineUnderTest:
        """The same graph with its matmuls in float32.

        Without its own copy of the matrices ONNX Runtime dequantizes them, and multiplies in float32.
        """
        return replace(self, info=replace(self.info, prefill_file=None), prepack=False)

    def probe(self) -> EngineProbe:
        """Open it.

        Raises:
            PackageError: a TensorRT engine cannot run here, for want of a GPU, say.
        """
        from q2export.compare.verify.engine_probe import EngineProbe
        from q2export.compare.verify.onnxruntime_probe import OnnxRuntimeProbe

        if self.info.tensorrt is None:
            return OnnxRuntimeProbe(self.folder, self.info, threads=self.threads, prepack=self.prepack)
        from q2export.runtime.backends.tensorrt.session import open_backend

        backend = open_backend(self.folder, self.info, self.info.tensorrt, self.rebuild_command)
        return EngineProbe(lambda: backend)
