from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.profile_loading import load_profile
from q2export.contracts.quantization import PACKED_FORMAT_VERSION
from q2export.errors import PackageError
from q2export.package.manifest import (
    ALWAYS_HASHED_BYTES,
    SCHEMA_VERSION,
    EngineInfo,
    FileRecord,
    Manifest,
    ModelInfo,
    ParitySummary,
    TensorRTInfo,
    ToolInfo,
    WeightFile,
    WeightsInfo,
    check_relative_path,
    installed_versions,
    this_tool,
)
from q2export.strict.codec import to_plain
from tests.package.packages import make_manifest

RECORD = FileRecord(3, "a" * 64, "b" * 64)
SMALL = make_manifest(
    {"model.onnx": RECORD, "weights/a.safetensors": dataclasses.replace(RECORD, bytes=7)},
    (WeightFile("weights/a.safetensors", "hardlink", ("model.safetensors",), 7),),
)


def plain() -> dict[str, Any]:
    result: dict[str, Any] = to_plain(SMALL)
    return result


def test_written_form() -> None:
    data = json.loads(SMALL.to_json())
    assert list(data)[:3] == ["schema_version", "tool", "created"]
    assert data["schema_version"] == SCHEMA_VERSION
    assert data["tool"] == {"name": "q2export", "version": this_tool().version}
    assert data["weights"]["files"][0]["sources"] == ["model.safetensors"]
    assert data["files"]["model.onnx"] == {
        "bytes": 3,
        "sha256": "a" * 64,
        "fingerprint": "b" * 64,
        "unhashed_reason": None,
    }
    assert Manifest.from_json(SMALL.to_json()) == SMALL


ESCAPING = ["", ".", "..", "/", "/etc/passwd", "a//b", "a/../b", "../x", "a/", "./a"]
UNREADABLE = ["a\\b", "a\0", "a\n", "\ud800"]


@pytest.mark.parametrize("name", [*ESCAPING, *UNREADABLE, "manifest.json"])
def test_paths_that_leave_the_package_are_refused(name: str) -> None:
    with pytest.raises(PackageError, match="is not a valid path of a package file"):
        check_relative_path(name)
    data = plain()
    data["files"][name] = to_plain(RECORD)
    with pytest.raises(
        PackageError, match=r"manifest\.json: .* is not a valid path|not UTF-8|expected UTF-8"
    ):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize("name", ["a", "a/b.c", "weights/..x", "é", "a b", "sub/manifest.json", "-"])
def test_plain_paths_are_taken(name: str) -> None:
    check_relative_path(name)


def change(data: dict[str, Any], dotted: str, value: object) -> None:
    *sections, last = dotted.split("/")
    for section in sections:
        data = data[int(section)] if isinstance(data, list) else data[section]
    data[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("engine/max_batchh", 1, r"unknown key 'max_batchh' in engine; did you mean 'max_batch'\?"),
        ("engine/max_batch", 0, r"engine: max_batch must be from 1 to 65536, found 0"),
        ("engine/max_batch", True, r"engine\.max_batch must be an integer, found True \(bool\)"),
        ("engine/max_batch", 1 << 63, r"max_batch must be from 1 to 65536, found 9223372036854775808"),
        ("engine/num_hidden_layers", 4097, r"engine: num_hidden_layers must be from 1 to 4096, found 4097"),
        ("engine/head_dim", 1 << 31, r"engine: head_dim must be from 1 to 2147483647"),
        ("engine/max_capacity", 1 << 25, r"engine: max_capacity must be from 1 to 16777216, found 33554432"),
        ("engine/context_length", 0, r"engine: context_length must be at least 1, found 0"),
        ("profile/threads", 65536, r"profile: threads must be from 0 to 1024, found 65536"),
        ("profile/threads", True, r"profile\.threads must be an integer, found True"),
        ("profile/capacity/max", 1 << 40, r"profile: capacity\.max must be from 1 to 16777216"),
        ("profile/batch/max", 0, r"profile\.batch: a range needs 1 <= min <= opt <= max"),
        ("profile/threds", 0, r"unknown key 'threds' in profile; did you mean 'threads'\?"),
        ("profile_overrides/capacity.max", 4096, r"profile_overrides: 'capacity\.max' is 4096, not so in"),
        ("profile_overrides/x" + "x" * 500, 1, r"profile_overrides: 'xxx.*\.\.\.x+' is 1, not so in profile"),
        ("engine/head_dim", 64.0, r"engine\.head_dim must be an integer, found 64\.0 \(float\)"),
        ("engine/dtype", "float3", r"engine\.dtype is 'float3'; did you mean 'float32'\?"),
        ("engine/format", "plan", r"engine\.format is 'plan'; valid: onnx, tensorrt"),
        ("engine/format", "tensorrt", r"engine: format 'tensorrt' needs a section 'tensorrt'"),
        ("engine/file", "model.ort", r"a graph must be a file \*\.onnx beside it, found 'model\.ort'"),
        ("engine/file", "sub/model.onnx", r"a graph must be a file \*\.onnx beside it"),
        ("engine/file", "other.onnx", r"engine\.file names 'other\.onnx', which files does not list"),
        ("weights/files/0/path", "x", r"weights\.files names 'x', which files does not list"),
        ("weights/files/0/bytes", 8, r"has 8 bytes in weights\.files, 7 in files"),
        ("weights/files/0/bytes", -1, r"weights\.files\[0\]: bytes must not be negative"),
        ("weights/files/0/placement", "link", r"weights\.files\[0\]\.placement is 'link'"),
        ("weights/files/0/sources", "a", r"weights\.files\[0\]\.sources must be a list, found 'a' \(str\)"),
        ("weights/value_scan", 1, r"weights\.value_scan must be true or false, found 1"),
        ("files", [], r"files must be a mapping"),
        ("files/model.onnx/sha256", "A" * 64, r"sha256 must be 64 lower-case hexadecimal digits"),
        ("files/model.onnx/sha256", None, r"exactly one of sha256 and unhashed_reason"),
        ("files/model.onnx/fingerprint", None, r"fingerprint must be a string, found None"),
        ("files/model.onnx/fingerprint", "b" * 64 + "\n", r"fingerprint must be 64"),
        ("parity", None, r"exactly one of parity and parity_skipped must be given"),
        ("parity/tokens", 0, r"parity: tokens must be at least 1"),
        ("profile", "cpu", r"profile must be a mapping"),
        ("created", "yesterday", r"created must look like"),
        ("libraries/onnx", 1, r"libraries\['onnx'\] must be a string"),
        ("schema_version", "1", r"schema_version must be an integer, found '1' \(str\)"),
        ("schema_version", True, r"schema_version must be an integer"),
        ("model/revision", 1, r"model\.revision must be a string, found 1"),
        ("extra", 1, r"unknown key 'extra'"),
    ],
)
def test_refused(key: str, value: object, message: str) -> None:
    data = plain()
    change(data, key, value)
    with pytest.raises(PackageError, match=rf"^/p/manifest\.json: .*{message}"):
        Manifest.from_json(json.dumps(data), "/p/manifest.json")


def test_every_key_is_required() -> None:
    for key in plain():
        data = plain()
        del data[key]
        with pytest.raises(PackageError, match=key):
            Manifest.from_json(json.dumps(data))


def test_large_files_alone_may_go_unhashed() -> None:
    FileRecord(ALWAYS_HASHED_BYTES + 1, None, "b" * 64, "linked")
    with pytest.raises(PackageError, match="sha256 is required for a file of 67108864 bytes"):
        FileRecord(ALWAYS_HASHED_BYTES, None, "b" * 64, "linked")


def test_parity_numbers_must_be_finite() -> None:
    with pytest.raises(PackageError, match="max_kl must be finite, found nan"):
        ParitySummary(False, 1, 0.0, 0.0, float("nan"), 1.0, 1.0)


NO_OBJECTS = ["", "{", "[]", "null", "7", "[" * 100_000, '{"a":' * 100_000, "\ud800"]
NO_NUMBERS = ['{"a": NaN}', '{"schema_version": ' + "9" * 5000 + "}", '{"schema_version": 1e400}']


@pytest.mark.parametrize("text", [*NO_OBJECTS, *NO_NUMBERS, '{"a": 1, "a": 1}'])
def test_text_that_is_no_manifest(text: str) -> None:
    with pytest.raises(PackageError, match=r"^m\.json"):
        Manifest.from_json(text, "m.json")


def test_deep_profile_is_refused() -> None:
    data = plain()
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    data["profile_overrides"] = {"x": deep}
    with pytest.raises(PackageError, match="is nested more than 32 deep"):
        Manifest.from_json(json.dumps(data))


def test_another_form_of_quantized_weights_names_the_way_out() -> None:
    data = plain()
    data["quantization"] = {"format_version": PACKED_FORMAT_VERSION - 1, "something": "else entirely"}
    message = (
        r"format_version: expected 2, found 1, .*; rebuild with: q2export build --model Qwen/Qwen2-0\.5B"
    )
    with pytest.raises(PackageError, match=message):
        Manifest.from_json(json.dumps(data), "/p/q/manifest.json")


@pytest.mark.parametrize(("version", "age"), [(SCHEMA_VERSION + 1, "newer"), (SCHEMA_VERSION - 1, "older")])
def test_other_schema_versions_name_both_and_the_way_out(version: int, age: str) -> None:
    data = plain()
    data["schema_version"] = version
    data["tool"]["version"] = "9.9"
    data["engine"] = "something else entirely"
    with pytest.raises(PackageError) as caught:
        Manifest.from_json(json.dumps(data), "/p/q/manifest.json")
    message = str(caught.value)
    assert (
        f"schema version {version} (written by q2export 9.9) is {age} than version {SCHEMA_VERSION}"
        in message
    )
    assert message.endswith(
        "rebuild with: q2export build --model Qwen/Qwen2-0.5B --revision main --profile cpu "
        "--set capacity.max=8192 --output /p/q --overwrite"
    )


def test_installed_versions() -> None:
    found = installed_versions(["pytest", "no-such-distribution"])
    assert list(found) == ["pytest"]
    assert re.match(r"\d+\.", found["pytest"])


HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
SIZE = st.integers(0, (1 << 63) - 1)
COUNT = st.integers(1, (1 << 63) - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
TEXT = st.text(max_size=8)
NAME = st.from_regex(r"[a-zA-Zé0-9_-]{1,8}(/[a-z.]{3,5}x){0,2}", fullmatch=True)
RECORDS = st.builds(FileRecord, SIZE, HEX, HEX) | st.builds(
    FileRecord, st.integers(ALWAYS_HASHED_BYTES + 1, 1 << 50), st.none(), HEX, TEXT
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | FLOAT | TEXT,
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(TEXT, tree, max_size=3),
    max_leaves=6,
)
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])

OVERRIDES = {"threads": st.integers(0, 1024), "capacity.max": st.integers(64, 1 << 24)}


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    engine = draw(st.sampled_from(["model.onnx", "é.onnx"]))
    files = draw(st.dictionaries(NAME, RECORDS, max_size=3)) | {engine: draw(RECORDS)}
    names = [engine, *sorted(files.keys() - {engine})]
    placements = st.sampled_from(["converted", "quantized", "reflink", "hardlink", "copy"])
    weights = tuple(
        WeightFile(name, draw(placements), tuple(draw(st.lists(TEXT, max_size=3))), files[name].bytes)
        for name in names[1:]
    )
    library = st.sampled_from(["tensorrt", "rtx"])
    tensorrt = draw(
        st.none() | st.builds(TensorRTInfo, library, TEXT, TEXT, COUNT, st.booleans(), st.booleans())
    )
    profile = draw(st.none() | st.fixed_dictionaries({}, optional=OVERRIDES))
    parity = draw(st.none() | st.builds(ParitySummary, st.booleans(), COUNT, *[FLOAT] * 5))
    return Manifest(
        tool=ToolInfo(draw(TEXT), draw(TEXT)),
        created="2026-11-30T12:00:00Z",
        op_contract_version=draw(SIZE),
        model=draw(st.builds(ModelInfo, TEXT, st.none() | TEXT, TEXT, SIZE, TEXT)),
        target=draw(st.sampled_from(["onnxruntime", "tensorrt", "portable"])),
        profile=None if profile is None else load_profile("cpu", profile),
        profile_overrides=profile or {},
        engine=EngineInfo(
            "onnx" if tensorrt is None else "tensorrt",
            names[0],
            draw(DTYPES),
            draw(DTYPES),
            *[draw(st.integers(1, 4096)) for _ in range(7)],
            draw(COUNT),
            tensorrt=tensorrt,
        ),
        weights=WeightsInfo(draw(st.booleans()), weights, *[draw(SIZE) for _ in range(4)]),
        parity=parity,
        parity_skipped=draw(TEXT) if parity is None else None,
        files=files,
        libraries=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
    )


@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    text = manifest.to_json()
    again = Manifest.from_json(text)
    assert again == manifest
    assert again.to_json() == text


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Keys leading to every value of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = []
    for key, value in items:
        found += [(*prefix, key), *places(value, (*prefix, key))]
    return found


PLACES = places(plain())


@given(
    st.sampled_from(PLACES),
    JSON | st.just("../x") | st.integers(),
    st.sampled_from(["set", "delete", "rename"]),
)
def test_mutated_manifests_are_taken_or_refused(place: tuple[Any, ...], value: Any, how: str) -> None:
    data: Any = plain()
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    if how == "set":
        parent[place[-1]] = value
    else:
        moved = parent.pop(place[-1])
        if how == "rename" and isinstance(parent, dict):
            parent[str(value)] = moved
    try:
        manifest = Manifest.from_json(json.dumps(data))
    except PackageError as error:
        assert str(error).startswith("manifest.json")
    else:
        assert to_plain(manifest) == data


@given(st.integers(0), st.binary(max_size=4), st.integers(0, 4))
def test_mutated_bytes_are_taken_or_refused(position: int, replacement: bytes, removed: int) -> None:
    text = SMALL.to_json().encode()
    position %= len(text)
    try:
        Manifest.from_json(text[:position] + replacement + text[position + removed :])
    except PackageError as error:
        assert str(error).startswith("manifest.json")


def test_threads_are_those_of_the_profile_as_far_as_there_are_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    for asked, expected in ((0, 0), (1, 1), (1024, cores)):
        profile = load_profile("cpu", {"threads": asked})
        overrides = profile.overrides()
        manifest = dataclasses.replace(SMALL, profile=profile, profile_overrides=overrides)
        assert manifest.threads == expected
    assert dataclasses.replace(SMALL, profile=None, profile_overrides={}).threads == 0


def test_an_exported_graph_was_built_for_nothing() -> None:
    exported = dataclasses.replace(SMALL, profile=None, profile_overrides={})
    assert Manifest.from_json(exported.to_json()) == exported
    with pytest.raises(PackageError, match="an exported graph has no profile"):
        _ = exported.built_for
