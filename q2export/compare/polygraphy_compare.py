"""Compares an engine of q2export with the PyTorch reference, through NVIDIA's Polygraphy.

This file was copied here by ``q2export verify --runner polygraphy``; ``comparison.json``, ``inputs.json`` and
``outputs.json`` beside it belong to it. It needs polygraphy and numpy; ``onnxrt`` also onnxruntime; ``trt``
also a GPU, the TensorRT the engine was built with, and either q2export or its plugin library (``--plugins``).

    python compare.py --runner onnxrt        # the graph through its function bodies, on the CPU
    python compare.py --runner trt           # the engine through its plugins, on the GPU
    python compare.py --runner onnxrt trt    # both, each against the reference

The exit code is 0 if all logits are within the tolerance, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Run the asked runners on the inputs and compare each with the reference; the exit code."""
    settings = json.loads((HERE / "comparison.json").read_text(encoding="utf-8"))
    options = _options(settings, arguments)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
    if settings["builder"] == "rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # read when polygraphy is imported
    from polygraphy.comparator import Comparator, CompareFunc, IterationResult, RunResults
    from polygraphy.json import load_json

    package = (options.package or HERE / settings["package"]).resolve()
    makers = {"onnxrt": _onnxrt_runner, "trt": _trt_runner}
    runners = [makers[name](package, settings, options.plugins) for name in options.runner]
    feeds = [_typed(feed, settings["kv_dtype"]) for feed in load_json(str(HERE / "inputs.json"))]
    found = Comparator.run(runners, data_loader=feeds)
    reference = RunResults.load(str(HERE / "outputs.json"))
    (reference_name,) = reference.keys()
    passed = True
    for name, iterations in found.items():
        logits = [IterationResult(outputs={"logits": one["logits"]}, runner_name=name) for one in iterations]
        pair = RunResults([(name, logits), (reference_name, reference[reference_name])])
        compare = CompareFunc.simple(atol=options.atol, rtol=0)
        passed &= bool(Comparator.compare_accuracy(pair, compare_func=compare))
    return 0 if passed else 1


def _options(settings: dict[str, Any], arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare an engine with the PyTorch reference.")
    parser.add_argument("--runner", nargs="+", choices=["onnxrt", "trt"], default=settings["runners"])
    parser.add_argument("--package", type=Path, help="the engine package, if it has moved")
    parser.add_argument("--plugins", type=Path, help="plugin library to load instead of importing q2export")
    parser.add_argument("--atol", type=float, default=settings["atol"], help="largest error of a logit")
    return parser.parse_args(arguments)


def _onnxrt_runner(package: Path, settings: dict[str, Any], plugins: Path | None) -> Any:
    """ONNX Runtime on the graph; it knows none of the custom ops and runs their function bodies."""
    if settings["kv_dtype"] == "bfloat16":
        raise SystemExit("onnxrt cannot run this package: ONNX Runtime has no bfloat16 arithmetic on the CPU")
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(str(package / settings["graph"])), name="onnxrt")


def _trt_runner(package: Path, settings: dict[str, Any], plugins: Path | None) -> Any:
    """TensorRT on the engine, with the plugins of ``plugins`` or of q2export."""
    if settings["engine"] is None:
        raise SystemExit("this package holds a graph and no engine: build one, or give --runner onnxrt")
    if plugins is None:
        from q2export.plugins.tensorrt.loader import import_tensorrt
        from q2export.plugins.tensorrt.registry import register

        trt = import_tensorrt(settings["builder"])
        register(trt)
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported
    if settings["builder"] == "rtx":
        sys.modules["tensorrt_rtx"] = trt  # the name polygraphy looks for; the wheel has another
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, LoadPlugins, TrtRunner

    engine: Any = EngineFromBytes(BytesFromPath(str(package / settings["engine"])))
    if plugins is not None:
        engine = LoadPlugins(plugins=[str(plugins)], obj=engine)
    return TrtRunner(engine, name="trt")


def _typed(feed: dict[str, Any], kv_dtype: str) -> dict[str, Any]:
    """The inputs with the caches in the engine's type; NumPy has no bfloat16, so that becomes torch's."""
    if kv_dtype != "bfloat16":
        return dict(feed)
    import torch

    return {
        name: torch.from_numpy(array).to(torch.bfloat16) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
