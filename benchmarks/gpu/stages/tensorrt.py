"""Whether an engine of TensorRT-RTX loads on this GPU at all; what it says is kept word for word.

TensorRT-RTX names no Hopper GPU as a target. So a network without plugins is built for no target and
for those that it does name, and each engine is offered to this GPU; then one of ours, with plugins. That an
engine does not load is a finding, and no failure of the stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Session, StepFailed, StepSkipped
from benchmarks.gpu.stages.engines import CHECKPOINTS

MODEL = "qwen2-tiny"
PROFILE = "a100"
"""The GPU that is nearest below Hopper among the targets."""


def run(session: Session) -> None:
    """The steps."""
    library = session.step("TensorRT-RTX", _library)
    if library is None:
        return
    for target in (None, *(("8.0",) if session.dry else library["targets"])):
        session.step(f"plain network for {target or 'no target'}", _plain, session, target)
    session.step("package for h200", _refused, session)
    session.step(f"package for {PROFILE}", _package, session)
    session.step(f"package for {PROFILE}: its engine", _engine_file, session)
    session.step(f"package for {PROFILE}: q2export.load", _load, session)


def _library() -> dict[str, Any]:
    from q2export.plugins.tensorrt.loader import import_tensorrt
    from q2export.plugins.tensorrt.targets import rtx_targets

    trt = import_tensorrt("rtx")
    targets = list(rtx_targets(trt))
    return {"targets": targets, "line": f"{trt.__version__}, builds for {', '.join(targets)}"}


def _plain(session: Session, target: str | None) -> dict[str, Any]:
    """A product and its ReLU."""
    from q2export.plugins.tensorrt.callbacks import make_logger
    from q2export.plugins.tensorrt.loader import import_tensorrt
    from q2export.plugins.tensorrt.targets import rtx_targets

    trt = import_tensorrt("rtx")
    said: list[str] = []
    builder = trt.Builder(make_logger(trt, said))
    network = builder.create_network(0)
    x, y = (network.add_input(name, trt.float16, (64, 64)) for name in ("x", "y"))
    none = trt.MatrixOperation.NONE
    product = network.add_matrix_multiply(x, none, y, none).get_output(0)
    network.mark_output(network.add_activation(product, trt.ActivationType.RELU).get_output(0))
    config = builder.create_builder_config()
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx_targets(trt)[target], 0)
    built = builder.build_serialized_network(network, config)
    if built is None:
        return {"loads": False, "said": said, "line": f"is not built: {'; '.join(said)}"}
    return _deserialized(session, bytes(built))


def _deserialized(session: Session, engine: bytes) -> dict[str, Any]:
    from q2export.plugins.tensorrt.callbacks import make_logger
    from q2export.plugins.tensorrt.loader import import_tensorrt

    trt = import_tensorrt("rtx")
    if session.dry:
        return {"loads": None, "line": f"{len(engine)} bytes; nothing is deserialized without a GPU"}
    said: list[str] = []
    loaded = trt.Runtime(make_logger(trt, said)).deserialize_cuda_engine(engine)
    if loaded is None:
        return {"loads": False, "said": said, "line": f"does not load: {'; '.join(said)}"}
    context = loaded.create_execution_context()
    line = f"loads{'' if context is not None else ', but has no execution context'}: {'; '.join(said)}"
    return {"loads": True, "runs": context is not None, "said": said, "line": line}


def _folder(session: Session) -> Path:
    return session.scratch("packages") / PROFILE


def _refused(session: Session) -> dict[str, Any]:
    """What a user gets who asks for this GPU."""
    from q2export import api
    from q2export.errors import Q2ExportError

    output = session.scratch("packages") / "h200"
    try:
        api.build(CHECKPOINTS / MODEL, output, profile="h200", overrides={"builder": "rtx"}, overwrite=True)
    except Q2ExportError as error:
        return {"line": str(error)}
    return {"line": "is built"}


def _package(session: Session) -> dict[str, Any]:
    from q2export import api

    if session.dry:
        raise StepSkipped("takes 20 s; tests/pipeline builds such a package")
    overrides = {"builder": "rtx"}
    api.build(
        CHECKPOINTS / MODEL,
        _folder(session),
        profile=PROFILE,
        overrides=overrides,
        parity=False,
        overwrite=True,
    )
    return {"line": "built"}


def _engine_file(session: Session) -> dict[str, Any]:
    from q2export.plugins.tensorrt.loader import import_tensorrt
    from q2export.plugins.tensorrt.registry import register

    found = sorted(_folder(session).glob("*.engine"))
    if not found:
        raise StepSkipped("there is no package")
    register(import_tensorrt("rtx"))
    return _deserialized(session, found[0].read_bytes())


def _load(session: Session) -> dict[str, Any]:
    if not _folder(session).is_dir():
        raise StepSkipped("there is no package")
    import q2export
    from q2export.errors import Q2ExportError

    try:
        engine = q2export.load(_folder(session))
    except Q2ExportError as error:
        return {"loads": False, "line": f"refused: {error}"}
    text = engine.generate("A class definition", max_new_tokens=32, do_sample=False).text
    engine.close()
    if not text:
        raise StepFailed("it loads and generates nothing")
    return {"loads": True, "text": text, "line": f"generates {text[:60]!r}"}
