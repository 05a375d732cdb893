"""Weights used in place: their files go into the output as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from q2export.contracts.progress import Advance, progress_bar, silent
from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.folder import read_blocks
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES
from q2export.exporter.checkpoint.values import check_block
from q2export.exporter.weights.bind import BindingPlan
from q2export.exporter.weights.sink import Scan, WeightSink
from q2export.package.manifest import SHARD_FOLDER


def place_weights(
    sink: WeightSink, plan: BindingPlan, scan: Scan, made_of: Sequence[str] = ()
) -> dict[Path, str]:
    """Bring the files that are used in place into the output.

    Args:
        sink: the output.
        plan: of weights in a checkpoint, or in one that was made in ``SHARD_FOLDER`` of the output.
        scan: which values are checked.
        made_of: names of the files that a checkpoint in the output was made of.

    Returns:
        file of the checkpoint -> its path in the output.

    Raises:
        CheckpointError: the scan found a value, or a file changed meanwhile.
        PackageError: no space, or the weights cannot be linked where that was asked for.
    """
    folder, locations = plan.checkpoint.folder, {}
    is_here = folder == sink.folder / SHARD_FOLDER
    if not is_here:
        sink.expect_weights(plan.shards)
    for shard in plan.checkpoint.files if is_here else plan.shards:
        name = locations[shard] = f"{SHARD_FOLDER}/{shard.relative_to(folder).as_posix()}"
        sha256 = None
        if is_here or scan == "all":
            with progress_bar(f"checking {shard.name}", shard.stat().st_size) as advance:
                sha256 = scan_shard(plan, shard, advance)
        if is_here and sha256 is not None:
            sink.add_weights(name, tuple(made_of), sha256)
        else:
            sink.place_weights(shard, name, sha256)
    return locations


def scan_shard(plan: BindingPlan, shard: Path, advance: Advance = silent) -> str:
    """Read one shard once: check its in-place tensors for NaN and infinities, and hash the whole file.

    Returns:
        SHA-256 of the file in hexadecimal.

    Raises:
        CheckpointError: a value is not finite, or the file changed since its header was read.
    """
    digest = hashlib.sha256()
    refs = sorted(
        (ref for ref in plan.checkpoint.tensors.values() if ref.file == shard), key=lambda ref: ref.offset
    )
    in_place = {ref.name for binding in plan.in_place for ref in binding.sources}
    start = refs[0].offset
    with shard.open("rb", buffering=0) as file:
        header = file.read(start)
    if len(header) != start:
        raise CheckpointError(f"{shard}: the file changed while it was read")
    digest.update(header)
    advance(start)
    with ThreadPoolExecutor(max_workers=1) as hasher:
        done = hasher.submit(lambda: None)
        for ref in refs:
            for first, raw in read_blocks(ref):
                previous, done = done, hasher.submit(digest.update, raw.data.cast("B"))
                if ref.name in in_place and ref.dtype in FLOAT_DTYPES:
                    check_block(raw, ref.dtype, ref.dtype, ref, first)
                previous.result()
                advance(raw.nbytes)
        done.result()
    return digest.hexdigest()
