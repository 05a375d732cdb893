"""Whether the library and the GPU at hand can run an engine: both sides named, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from q2export.contracts import opspec
from q2export.errors import PackageError
from q2export.package.manifest import TensorRTInfo

_TITLES = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Found:
    """What is at hand: the library, and the GPU."""

    builder_version: str
    gpu: str
    compute_capability: str


def check_compatible(engine: str, built: TensorRTInfo, found: Found, rebuild_command: str) -> None:
    """Refuse an engine that would not load, or not run.

    An engine runs on GPUs of the compute capability it was built for, with plugins of the same contract, in
    the version of the library it was built with; a version-compatible one in that version and later ones of
    the same major version.

    Args:
        engine: its path.
        built: from the manifest.
        found: the library that ``built.builder`` names, and the GPU.
        rebuild_command: builds the package again.

    Raises:
        PackageError: naming the engine, both sides and the command.
    """
    if built.plugin_contract_version != opspec.CONTRACT_VERSION:
        raise PackageError(
            f"{engine}: built for version {built.plugin_contract_version} of the custom ops, this q2export "
            f"has version {opspec.CONTRACT_VERSION}; rebuild with: {rebuild_command}"
        )
    same_gpu = built.compute_capability == found.compute_capability
    if not same_gpu or not _version_fits(built, found.builder_version):
        raise mismatch(engine, built, found, rebuild_command)


def mismatch(
    engine: str, built: TensorRTInfo, found: Found, rebuild_command: str, reason: str = ""
) -> PackageError:
    """The error for an engine that does not fit; ``reason`` is what the library says, if anything."""
    library = _TITLES[built.builder]
    said = f" ({reason})" if reason else ""
    return PackageError(
        f"{engine}: built with {library} {built.builder_version} for compute capability "
        f"{built.compute_capability}; found {library} {found.builder_version} and {found.gpu} (compute "
        f"capability {found.compute_capability}){said}. Run it where the two agree, or build it for what is "
        f"here, with a profile of this GPU: {rebuild_command}"
    )


def _version_fits(built: TensorRTInfo, version: str) -> bool:
    if not built.version_compatible:
        return built.builder_version == version
    ours, theirs = (
        [int(part) for part in text.split(".") if part.isdigit()] for text in (built.builder_version, version)
    )
    return ours[:1] == theirs[:1] and ours <= theirs
