from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.profile import ParityThresholds, Profile
from q2export.contracts.profile_loading import fit_to_model, load_profile, profile_names
from q2export.contracts.quantization import Quantization
from q2export.contracts.ranges import Range
from q2export.errors import ProfileError

SMALL = """
name: small
target: onnxruntime
device: cpu
dtype: float32
kv_dtype: float32
batch: {min: 1, opt: 2, max: 4}
prompt: {min: 1, opt: 8, max: 100}
capacity: {min: 16, opt: 64, max: 100}
prefill_chunk: 32
parity: {max_abs_logit_error: 1e-3, max_kl_divergence: 0, min_cosine_similarity: 1, min_top1_agreement: 0.5}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize("name", profile_names())
def test_packaged_profiles_load_under_their_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


def test_cpu() -> None:
    profile = load_profile("cpu")
    assert (profile.target, profile.device, profile.dtype, profile.kv_dtype) == (
        "onnxruntime",
        "cpu",
        "float32",
        "float32",
    )
    assert profile.batch.max == 8
    assert profile.capacity.max == 32768


def test_precedence_and_origin(small: Path) -> None:
    profile = load_profile(small, {"batch.max": 16, "threads": 3})
    assert profile.batch == Range(1, 2, 16)
    assert profile.threads == 3
    assert profile.parity == ParityThresholds(0.001, 0.0, 1.0, 0.5)
    assert isinstance(profile.parity.max_kl_divergence, float)  # written as an integer
    assert profile.origin["batch.max"] == "override"
    assert profile.origin["threads"] == "override"
    assert profile.origin["batch.min"] == "profile"
    assert profile.origin["workspace_mib"] == "default"
    assert profile.overrides() == {"batch.max": 16, "threads": 3}
    leaves = {key for key in profile.origin if "." in key}
    assert len(profile.origin) == len(leaves) + len(dataclasses.fields(Profile)) - 7  # 6 sections and origin
    assert "origin" not in profile.to_dict()


def test_lower_maximum_takes_the_rest_with_it(small: Path) -> None:
    profile = load_profile(small, {"capacity.max": 12})
    assert profile.capacity == Range(12, 12, 12)
    assert profile.prompt == Range(1, 8, 12)
    assert profile.prefill_chunk == 12
    lowered = {key for key, origin in profile.origin.items() if origin == "lowered to fit"}
    assert lowered == {"capacity.opt", "capacity.min", "prompt.max", "prefill_chunk"}
    assert load_profile(small, profile.overrides()) == profile


def test_contradicting_command_line_is_refused(small: Path) -> None:
    with pytest.raises(
        ProfileError,
        match=r"small\.yaml with capacity\.max=40, prompt\.max=50: prompt\.max 50 exceeds capacity\.max 40",
    ):
        load_profile(small, {"capacity.max": 40, "prompt.max": 50})
    with pytest.raises(ProfileError, match=r"batch: a range needs .* found min 1, opt 9, max 4"):
        load_profile(small, {"batch.opt": 9})


def test_contradicting_file_is_refused_not_lowered(small: Path) -> None:
    with pytest.raises(ProfileError, match=r"small\.yaml: prompt\.max 100 exceeds capacity\.max 99"):
        load_profile(edited(small, "opt: 64, max: 100", "opt: 64, max: 99"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "prefill_chunk: 32",
            "prefil_chunk: 32",
            r"unknown key 'prefil_chunk'; did you mean 'prefill_chunk'\?",
        ),
        ("opt: 2, max: 4", "opt: 2, maxx: 4", r"unknown key 'maxx' in batch; did you mean 'max'\?"),
        ("prefill_chunk: 32", "prefill_chunk: '32'", r"prefill_chunk must be an integer, found '32' \(str\)"),
        (
            "prefill_chunk: 32",
            "prefill_chunk: true",
            r"prefill_chunk must be an integer, found True \(bool\)",
        ),
        (
            "prefill_chunk: 32",
            "prefill_chunk: 3.5",
            r"prefill_chunk must be an integer, found 3\.5 \(float\)",
        ),
        (
            "prefill_chunk: 32",
            "prefill_chunk: 0",
            r"prefill_chunk must be from 1 to prompt\.max 100, found 0",
        ),
        ("prefill_chunk: 32", "", r"key 'prefill_chunk' is missing"),
        ("opt: 2, max: 4", "opt: 2", r"key 'max' in batch is missing"),
        ("batch: {min: 1, opt: 2, max: 4}", "batch: 4", r"batch must be a mapping, found 4 \(int\)"),
        ("onnxruntime", "onnxruntme", r"target is 'onnxruntme'; did you mean 'onnxruntime'\?"),
        ("target: onnxruntime", "target: 7", r"target must be one of onnxruntime, .*found 7 \(int\)"),
        ("onnxruntime", "tensorrt", r"target 'tensorrt' needs device 'cuda', found 'cpu'"),
        ("dtype: float32\nkv", "dtype: bfloat16\nkv", r"dtype 'bfloat16' is not implemented .*use 'float32'"),
        ("1e-3", ".inf", r"parity\.max_abs_logit_error must be a number, found '\.inf'"),
        ("1e-3", "1e999", r"parity\.max_abs_logit_error must be a finite number"),
        ("1e-3", "-1", r"parity: max_abs_logit_error must be finite and not negative, found -1"),
        ("agreement: 0.5", "agreement: 99", r"min_top1_agreement must be from 0 to 1, found 99"),
        ("name: small", "name: ''", r"name must not be empty"),
        ("name: small", "name: s\nquantization: int4", r"quantization must be a mapping, found 'int4'"),
        ("name: small", "name: s\nquantization: {bits: 4}", r"unknown key 'bits' in quantization"),
        (
            "name: small",
            "name: s\nquantization: {weights: int5}",
            r"quantization\.weights is 'int5'; did you mean 'int[48]'",
        ),
        (
            "name: small",
            "name: s\nquantization: {block_size: 33}",
            r"quantization: block_size is 33, expected",
        ),
        ("name: small", "name: s\nquantization: {keep: x}", r"quantization\.keep must be a list, found 'x'"),
        ("name: small", "name: s\nthreads: -1", r"threads must be from 0 to 1024, found -1"),
        (
            "name: small",
            "name: s\nworkspace_mib: 0",
            r"workspace_mib is 0, which is for target 'tensorrt' alone",
        ),
        ("name: small", "name: s\ngpu: A100", r"gpu is 'A100', which is for target 'tensorrt' or 'onnx"),
        ("name: small", "name: s\norigin: {}", r"unknown key 'origin'"),
    ],
)
def test_refused_files_name_file_and_key(small: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ProfileError, match=rf"small\.yaml: .*{message}"):
        load_profile(edited(small, old, new))


def test_compute_capability_is_text(tmp_path: Path) -> None:
    assert load_profile("a100", {"compute_capability": "9.0"}).compute_capability == "9.0"
    with pytest.raises(ProfileError, match="needs a compute_capability such as"):
        load_profile("a100", {"compute_capability": None})
    with pytest.raises(ProfileError, match=r"must look like \"8\.0\", found 'sm_80'"):
        load_profile("a100", {"compute_capability": "sm_80"})
    with pytest.raises(ProfileError, match=r"compute_capability must be a string, found 8\.0 \(float\)"):
        load_profile("a100", {"compute_capability": 8.0})


@pytest.mark.parametrize(
    ("profile", "key", "value"),
    [
        ("cpu", "builder", "rtx"),
        ("cpu", "device", "cuda"),
        ("cpu", "memory_mib", 1),
        ("cpu", "max_logits", 1),
        ("cpu", "version_compatible", True),
        ("cpu", "weight_streaming", True),
        ("cpu", "workspace_mib", 1),
        ("a100", "threads", 2),
        ("a100", "device", "cpu"),
        ("a100", "quantization.activations", "int8"),
        ("a100", "quantization.activations", "bfloat16"),
    ],
)
def test_what_the_target_would_ignore_is_refused(profile: str, key: str, value: object) -> None:
    with pytest.raises(ProfileError, match=rf"with {key}=.*target '[\w-]+' (or|alone|needs device)"):
        load_profile(profile, {key: value})


def test_a_profile_is_fit_to_the_model(small: Path) -> None:
    profile = load_profile(small)
    assert fit_to_model(profile, 100) is profile
    lowered = fit_to_model(profile, 20)
    assert (lowered.capacity, lowered.prompt, lowered.prefill_chunk) == (
        Range(16, 20, 20),
        Range(1, 8, 20),
        20,
    )
    assert lowered.origin["capacity.max"] == lowered.origin["prompt.max"] == "lowered to fit"
    assert lowered.overrides() == {}
    assert fit_to_model(profile, 1).capacity == Range(1, 1, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"capacity.max": 101}, r"capacity\.max is 101, but the model holds sequences of 20 tokens"),
        ({"prompt.max": 21}, r"prompt\.max 21 exceeds capacity\.max 20"),
        ({"prefill_chunk": 21}, r"prefill_chunk must be from 1 to prompt\.max 20, found 21"),
        ({"capacity.opt": 21}, r"capacity: a range needs .* found min 16, opt 21, max 20"),
    ],
)
def test_an_override_that_does_not_fit_the_model_is_refused(
    small: Path, overrides: dict[str, object], message: str
) -> None:
    profile = load_profile(small, overrides)
    with pytest.raises(ProfileError, match=message):
        fit_to_model(profile, 20)


@pytest.mark.parametrize("text", ["", "7", "[1]", "just text"])
def test_a_file_that_is_no_mapping(small: Path, text: str) -> None:
    small.write_text(text)
    with pytest.raises(ProfileError, match=r"small\.yaml: the top level must be a mapping"):
        load_profile(small)


@pytest.mark.parametrize("name", ["cpuu", "CPU.yaml", "./cpu", "missing/cpu.yaml", "", ".."])
def test_no_such_profile(name: str) -> None:
    with pytest.raises(ProfileError, match=r"no packaged profile is called|cannot be read"):
        load_profile(name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"capacty.max": 1}, r"no key 'capacty\.max'; did you mean 'capacity\.max'\?"),
        ({"capacity": 1}, r"no key 'capacity'; give one of capacity\.min, capacity\.opt, capacity\.max"),
        ({"name": "other"}, r"no key 'name'"),
        ({"origin": {}}, r"no key 'origin'"),
        ({"threads": "2"}, r"small\.yaml with threads=2: threads must be an integer, found '2' \(str\)"),
        ({"threads": None}, r"threads must be an integer, found None"),
        ({"quantization": "int8"}, r"no key 'quantization'; give one of quantization\.weights, "),
        ({"quantization.weight": "int8"}, r"no key .*; did you mean 'quantization\.weights'\?"),
    ],
)
def test_refused_overrides(small: Path, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(small, overrides)


def ranges(largest: int) -> st.SearchStrategy[Range]:
    return st.lists(st.integers(1, largest), min_size=3, max_size=3).map(lambda v: Range(*sorted(v)))


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    capacity, prompt = sorted(draw(st.lists(ranges(1 << 20), min_size=2, max_size=2)), key=lambda r: -r.max)
    fraction = st.floats(0, 1)
    is_tensorrt = draw(st.booleans())
    dtype = draw(st.sampled_from(["auto", "float16", "bfloat16"])) if is_tensorrt else "float32"
    return Profile(
        name=draw(st.text(min_size=1)),
        description=draw(st.text()),
        target="tensorrt" if is_tensorrt else "onnxruntime",
        device="cuda" if is_tensorrt else "cpu",
        gpu=draw(st.none() | st.text()) if is_tensorrt else None,
        compute_capability=draw(st.sampled_from(["8.0", "12.0"])) if is_tensorrt else None,
        memory_mib=draw(st.none() | st.integers(1, 1 << 24)) if is_tensorrt else None,
        dtype=dtype,
        kv_dtype=draw(st.sampled_from(["auto", dtype])) if is_tensorrt else dtype,
        batch=draw(ranges(64)),
        prompt=prompt,
        capacity=capacity,
        prefill_chunk=draw(st.integers(1, prompt.max)),
        workspace_mib=draw(st.none() | st.integers(1, 1 << 24)) if is_tensorrt else None,
        threads=0 if is_tensorrt else draw(st.integers(0, 1024)),
        parity=ParityThresholds(draw(st.floats(0, 1e9)), draw(fraction), draw(fraction), draw(fraction)),
    )


@given(profiles())
def test_round_trip_through_json(profile: Profile) -> None:
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(max_size=5), t, max_size=3)
)


@given(st.sampled_from(sorted(yaml.safe_load(SMALL))), TREES)
def test_any_value_anywhere_is_taken_or_refused(key: str, value: Any) -> None:
    data = load_profile("cpu").to_dict()
    try:
        profile = Profile.from_dict({**data, key: value}, "x.yaml")
    except ProfileError as error:
        assert str(error).startswith("x.yaml: ")
        assert key in str(error)
    else:
        assert profile.to_dict()[key] == value


def test_quantization_is_a_section(small: Path) -> None:
    plain = load_profile(small)
    assert plain.quantization == Quantization() and not plain.quantization.enabled
    assert plain.origin["quantization.weights"] == plain.origin["quantization.keep"] == "default"
    edited(small, "name: small", "name: s\nquantization: {weights: int8, keep: [lm_head.weight]}")
    loaded = load_profile(small, {"quantization.weights": "int4"})
    assert loaded.quantization == Quantization(weights="int4", keep=("lm_head.weight",))
    assert loaded.origin["quantization.weights"] == "override"
    assert loaded.origin["quantization.keep"] == "profile"
    assert load_profile(small, {"quantization.keep": ["*.experts.*", "a"]}).quantization.keep == (
        "*.experts.*",
        "a",
    )
    assert Profile.from_dict(loaded.to_dict()) == loaded
    assert load_profile(small, loaded.overrides()).quantization == loaded.quantization


def test_the_builder_onnxruntime_makes_another_target_of_a_gpu_profile() -> None:
    profile = load_profile("h100", {"builder": "onnxruntime"})
    assert (profile.target, profile.device, profile.gpu) == ("onnxruntime-cuda", "cuda", "H100")
    assert profile.overrides() == {"builder": "onnxruntime"}
    assert Profile.from_dict(profile.to_dict()) == profile
    assert load_profile("cuda").target == "onnxruntime-cuda"
    for overrides, message in (
        ({"weight_streaming": True}, "weight_streaming is True, which is for target 'tensorrt' alone"),
        ({"dtype": "float32"}, "'float32' is not implemented for ONNX Runtime on CUDA"),
        ({"compute_capability": "7.5"}, r"compute_capability is 7\.5, .* need 8\.0 or later"),
        ({"quantization.weights": "int4", "quantization.symmetric": False}, "takes no zero points"),
    ):
        with pytest.raises(ProfileError, match=message):
            load_profile("h100", {"builder": "onnxruntime", **overrides})
    with pytest.raises(ProfileError, match="builder 'rtx' does not make engines for target"):
        load_profile("cuda", {"builder": "rtx"})


def test_quantization_that_tensorrt_cannot_honour() -> None:
    for key, value, message in (
        ("symmetric", False, "which takes no zero points of blocks"),
        ("activations", "int8", "is for target 'onnxruntime' alone"),
    ):
        with pytest.raises(ProfileError, match=message):
            load_profile("a100", {"quantization.weights": "int4", f"quantization.{key}": value})
