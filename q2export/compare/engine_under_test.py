"""An engine to be compared: in a finished package, or in one that is being built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2export.contracts.commands import command_line
from q2export.contracts.profile import Profile
from q2export.package.manifest import EngineInfo
from q2export.package.reader import Package
from q2export.pipeline.job import Job

if TYPE_CHECKING:
    from q2export.compare.verify.engine_probe import EngineProbe
    from q2export.runtime.backends.base import Backend


@dataclass(frozen=True)
class EngineUnderTest:
    """Where an engine is and how it is run.

    Attributes:
        folder: a package, perhaps not yet complete.
        info: what it holds.
        threads: CPU threads of an ONNX Runtime engine; 0 is one per core.
        rebuild_command: for messages.
        profile: that it was built for.
        exact: run an ONNX Runtime engine without rounding activations.
    """

    folder: Path
    info: EngineInfo
    threads: int
    rebuild_command: str
    profile: Profile
    exact: bool = False

    @classmethod
    def of_package(cls, package: Package, threads: int | None) -> EngineUnderTest:
        """The engine of a package; ``threads`` None is what its profile says."""
        manifest = package.manifest
        threads = manifest.threads if threads is None else threads
        command = package.rebuild_command()
        return cls(package.folder, manifest.engine, threads, command, manifest.built_for)

    @classmethod
    def of_build(cls, folder: Path, job: Job, info: EngineInfo) -> EngineUnderTest:
        """The engine in ``folder``, whose package has no manifest yet."""
        command = command_line("build", "--model", job.model.id, "--profile", job.profile.name)
        return cls(folder, info, job.profile.threads, command, job.profile)

    def with_exact_matmuls(self) -> EngineUnderTest:
        """The same graph, whose matmuls do not round what they multiply."""
        return replace(self, exact=True)

    def probe(self) -> EngineProbe:
        """Open it.

        Raises:
            PackageError: an engine for a GPU cannot run here, for want of one, say.
        """
        from q2export.compare.verify.engine_probe import EngineProbe
        from q2export.compare.verify.onnxruntime_probe import OnnxRuntimeProbe

        if self.profile.target == "onnxruntime":
            return OnnxRuntimeProbe(self.folder, self.info, threads=self.threads, exact=self.exact)
        backend = self._open_on_gpu()
        return EngineProbe(lambda: backend)

    def _open_on_gpu(self) -> Backend[Any]:
        if self.info.tensorrt is None:
            from q2export.runtime.backends.onnxruntime_cuda.open import open_backend as open_on_cuda

            return open_on_cuda(self.folder, self.info, self.profile.max_logits)
        from q2export.runtime.backends.tensorrt.executor import open_backend

        return open_backend(self.folder, self.info, self.info.tensorrt, self.rebuild_command)
