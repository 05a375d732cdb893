"""The kernel benchmarks without a GPU: cases, counts and correctness checks, on the kernels of the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.__main__ import checked, figures, judged, main, table
from benchmarks.kernels.attention import attention_bytes, attention_flops, attention_workload, rotary_workload
from benchmarks.kernels.case import AttentionShape, Case, KernelBenchmarkError, MoeShape, Workload, load_cases
from benchmarks.kernels.decoder import decoder_bytes
from benchmarks.kernels.moe import exact, grouped, make_inputs, moe_workload
from benchmarks.kernels.timing import sets_needed
from q2export.plugins.tensorrt import kernels
from tests.host_cuda.compiling import compile_for_host

CPU = torch.device("cpu")
ATTENTION = AttentionShape(batch=2, past=5, query=3, num_heads=4, num_kv_heads=2, head_dim=64)
RAGGED = AttentionShape(batch=3, past=20, query=2, num_heads=4, num_kv_heads=2, head_dim=64, other_past=1)
MOE = MoeShape(tokens=5, hidden_size=32, intermediate_size=16, num_experts=6, top_k=2)


@pytest.fixture(scope="module")
def library() -> Iterator[None]:
    path = compile_for_host("libq2export_kernels.so")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "LIBRARY", path)
        yield


def test_the_cases_are_well_formed() -> None:
    cases = load_cases()
    assert {case.kind for case in cases} == {
        "rotary",
        "decode_attention",
        "prefill_attention",
        "moe",
        "decoder",
    }
    assert all(case.bars.keys() <= {"copy_bandwidth", "matrix_peak", "microseconds"} | {
        key for key in case.bars if key.startswith("speedup:")
    } for case in cases)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: {kind: mole}", "unknown kind 'mole'; did you mean 'moe'"),
        ("x: {kind: moe, dtype: float8}", "expected float16 or bfloat16"),
        ("x: {kind: moe, dtype: float16, shape: {tokens: 1}}", "hidden_size"),
    ],
)
def test_wrong_cases_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(text)
    with pytest.raises(KernelBenchmarkError, match=message):
        load_cases(path)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (attention_workload, ATTENTION),
        (attention_workload, RAGGED),
        (rotary_workload, ATTENTION),
        (moe_workload, MOE),
        (moe_workload, replace(MOE, hidden_size=128, intermediate_size=128, bits=4)),
    ],
    ids=["attention", "ragged", "rotary", "moe", "moe-int4"],
)
def test_the_kernels_pass_the_check_of_the_benchmark(make: object, shape: object, dtype: str) -> None:
    torch.manual_seed(0)
    workload = make(Case("x", "moe", dtype, shape, {}), CPU, 2)  # type: ignore[operator, arg-type]
    assert len(workload.subject) == 2
    assert 0 < checked(workload)["q2export"] <= 0.01
    workload.peers.clear()  # they would be as far from a wrong reference
    workload.reference = workload.reference + 0.1 * workload.reference.abs().max()
    with pytest.raises(KernelBenchmarkError, match=r"is above 1\.00e-02"):
        checked(workload)


def test_a_peer_bounds_the_error() -> None:
    workload = Workload(
        subject=[lambda: torch.tensor([1.3])],
        peers={"peer": [lambda: torch.tensor([1.1])]},
        reference=torch.tensor([1.0]),
        bytes_moved=1,
        flops=1,
    )
    with pytest.raises(KernelBenchmarkError, match=r"error 3\.00e-01 is above 2\.00e-01"):
        checked(workload)
    workload.subject = [lambda: torch.tensor([float("nan")])]
    with pytest.raises(KernelBenchmarkError, match="nan"):
        checked(workload)


def test_the_grouped_pipeline_computes_the_reference() -> None:
    torch.manual_seed(0)
    one = make_inputs(MOE, torch.bfloat16, CPU)
    try:
        output = grouped(MOE, one)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"grouped_mm does not run on this CPU: {error}")
    expected = exact(MOE, one)
    assert (output.float() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_counts_by_hand() -> None:
    # Queries at positions 5, 6, 7 see 6, 7 and 8 keys: 21 pairs; 4 heads of 64, 2 rows, 4 operations each.
    assert attention_flops(ATTENTION) == 21 * 4 * 64 * 2 * 4
    # Elements of a channel: query and output 2 * (2*3*4), cache 2 * (2*8*2), new keys and values 4 * (2*3*2).
    assert attention_bytes(ATTENTION) == 2 * 64 * (48 + 64 + 48)
    # Rows of 22, 3 and 3 keys; their queries see 21 and 22, and twice 2 and 3.
    assert attention_flops(RAGGED) == (43 + 2 * 5) * 4 * 64 * 4
    assert attention_bytes(RAGGED) == 2 * 64 * (2 * (3 * 2 * 4) + 2 * (28 * 2) + 4 * (3 * 2 * 2))
    decoder = next(case for case in load_cases() if case.kind == "decoder")
    # 24 * (2*896*896 + 2*896*128 + 3*896*4864) + 151936*896 weights
    assert decoder_bytes(decoder.shape) == 2 * 493_961_216  # type: ignore[arg-type]
    assert (sets_needed(1 << 30, 60 << 20), sets_needed(10 << 20, 60 << 20)) == (2, 18)


def test_figures_and_bars() -> None:
    ceilings = {"copy_bandwidth": 4e12, "matrix_peak": 8e14}
    measured = {"q2export": {"median_us": 50.0}, "peer": {"median_us": 100.0}}
    found = figures(measured, moved=100_000_000, flops=0, ceilings=ceilings)
    assert found["q2export"]["copy_bandwidth"] == pytest.approx(0.5)
    assert found["peer"]["speedup"] == pytest.approx(2.0)
    case = Case("x", "moe", "float16", replace(MOE), {})
    bars = {"copy_bandwidth": 0.6, "microseconds": 50.0, "speedup:peer": 1.5, "speedup:absent": 1.0}
    record = {"case": "x", "error": None, "times": measured, "figures": found}
    record["bars"] = judged(replace(case, bars=bars), record)
    assert [bar["met"] for bar in record["bars"]] == [False, True, True, None]  # type: ignore[attr-defined]
    assert "2.00x" in table({"gpu": "G", "ceilings": ceilings, "records": [record]})


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main([]) == 1
    assert "timed on a GPU, and PyTorch sees none here" in capsys.readouterr().err
