"""Random damage to a good checkpoint: the command line refuses each case with one message naming a file.

Every strategy builds damage that is damage for certain; where a random edit could be harmless (a changed
byte of metadata), an independent reader decides and the case is skipped.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from q2export.cli.main import main
from q2export.exporter.checkpoint.config import load_config
from q2export.exporter.checkpoint.folder import INDEX_FILE, SINGLE_FILE, open_checkpoint
from q2export.exporter.checkpoint.parameters import check_parameters
from tests.helpers.checkpoints import (
    header_bytes,
    shard_name,
    split_file,
    tiny_config,
    write_checkpoint,
    write_json,
)
from tests.helpers.wrong_values import (
    MOE_SHAPE_FIELDS,
    SHAPE_FIELDS,
    json_values,
    names,
    wrong_fields,
    wrong_moe_fields,
)

SHARDS = 3
CONFIGS = {
    "dense": tiny_config(vocab_size=37, num_attention_heads=4, hidden_size=24, intermediate_size=20),
    "moe": tiny_config(
        model_type="qwen2_moe",
        vocab_size=37,
        num_attention_heads=4,
        hidden_size=24,
        intermediate_size=20,
        moe_intermediate_size=6,
        shared_expert_intermediate_size=10,
        num_experts=3,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        decoder_sparse_step=1,
    ),
}
many = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
few = settings(many, max_examples=25)


def assert_refused(folder: Path) -> None:
    """``q2export export`` exits with 1 and one line that names a file of ``folder``, and writes nothing."""
    output = folder.parent / "output"
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = main(["export", "--model", str(folder), "--target", "portable", "--output", str(output)])
    message = stderr.getvalue().removesuffix("\n")
    assert code == 1
    assert message.startswith("error: ")
    assert str(folder) in message
    assert message.isprintable()  # one line, and nothing that a terminal would obey
    assert len(message) < 1000
    assert stdout.getvalue() == ""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Good checkpoints by kind and number of shards."""
    root = tmp_path_factory.mktemp("originals")
    folders = {}
    for kind, config in CONFIGS.items():
        for shards in (1, SHARDS):
            folder = folders[kind, shards] = write_checkpoint(root / f"{kind}{shards}", config, shards=shards)
            check_parameters(open_checkpoint(folder), load_config(folder))
    return folders


Originals = dict[tuple[str, int], Path]
kinds = st.sampled_from(sorted(CONFIGS))


@contextmanager
def copy_of(original: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as root:
        yield Path(shutil.copytree(original, Path(root) / "model"))


def set_field(folder: Path, name: str, value: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    assume(value != config.get(name) or type(value) is not type(config.get(name)))
    write_json(folder / "config.json", {**config, name: value})


@settings(many, max_examples=150)
@given(kind=kinds, field=wrong_fields)
def test_config_value_wrong(originals: Originals, kind: str, field: tuple[str, object]) -> None:
    with copy_of(originals[kind, 1]) as folder:
        set_field(folder, *field)
        assert_refused(folder)


@many
@given(field=wrong_moe_fields)
def test_config_value_wrong_in_mixture(originals: Originals, field: tuple[str, object]) -> None:
    with copy_of(originals["moe", 1]) as folder:
        set_field(folder, *field)
        assert_refused(folder)


@many
@given(kind=kinds, data=st.data(), value=st.integers(1, 200))
def test_config_size_is_not_that_of_the_weights(
    originals: Originals, kind: str, data: st.DataObject, value: int
) -> None:
    fields = (MOE_SHAPE_FIELDS if kind == "moe" else SHAPE_FIELDS).split()
    with copy_of(originals[kind, 1]) as folder:
        set_field(folder, data.draw(st.sampled_from(fields)), value)
        assert_refused(folder)


def damage_text(path: Path, data: st.DataObject) -> None:
    """Make a JSON file unreadable: cut, not UTF-8, a control character, a key twice, garbage after it."""
    content = path.read_bytes().rstrip()
    at = data.draw(st.integers(0, len(content) - 1))
    how = data.draw(st.sampled_from(["cut", "not UTF-8", "control character", "key twice", "garbage after"]))
    damaged = {
        "cut": content[:at],
        "not UTF-8": content[:at] + b"\xff" + content[at:],
        "control character": content[:at] + b"\x01" + content[at:],
        "key twice": b'{"a": 1, "a": 1,' + content[1:],
        "garbage after": content
        + data.draw(st.binary(min_size=1).filter(lambda extra: extra.strip(b" \t\r\n") != b"")),
    }[how]
    path.write_bytes(damaged)


@many
@given(kind=kinds, data=st.data())
def test_config_text_damaged(originals: Originals, kind: str, data: st.DataObject) -> None:
    with copy_of(originals[kind, 1]) as folder:
        damage_text(folder / "config.json", data)
        assert_refused(folder)


@many
@given(kind=kinds, data=st.data())
def test_index_text_damaged(originals: Originals, kind: str, data: st.DataObject) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        damage_text(folder / INDEX_FILE, data)
        assert_refused(folder)


@many
@given(kind=kinds, shards=st.sampled_from([1, SHARDS]), data=st.data())
def test_file_cut_or_prolonged(originals: Originals, kind: str, shards: int, data: st.DataObject) -> None:
    with copy_of(originals[kind, shards]) as folder:
        path = draw_file(folder, data)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        extra = data.draw(st.binary(min_size=1))
        path.write_bytes(data.draw(st.sampled_from([content[:cut], content + extra])))
        assert_refused(folder)


def draw_file(folder: Path, data: st.DataObject) -> Path:
    return folder / data.draw(st.sampled_from(sorted(path.name for path in folder.glob("*.safetensors"))))


@many
@given(kind=kinds, data=st.data(), length=st.integers(0, 2**64 - 1) | st.integers(0, 10_000))
def test_header_length_wrong(originals: Originals, kind: str, data: st.DataObject, length: int) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        path = draw_file(folder, data)
        content = path.read_bytes()
        assume(length != int.from_bytes(content[:8], "little"))
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        assert_refused(folder)


def meaning(content: bytes) -> object:
    """What a plain JSON reader takes from a header: its tensors, or ``None`` if it cannot read it."""
    try:
        header = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


@settings(many, max_examples=120)
@given(kind=kinds, data=st.data(), byte=st.integers(0, 255))
def test_header_byte_changed(originals: Originals, kind: str, data: st.DataObject, byte: int) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        path = draw_file(folder, data)
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        at = data.draw(st.integers(8, end - 1))
        changed = content[:at] + bytes([byte]) + content[at + 1 :]
        assume(meaning(changed[8:end]) != meaning(content[8:end]))
        path.write_bytes(changed)
        assert_refused(folder)


@settings(many, max_examples=120)
@given(kind=kinds, data=st.data(), value=json_values)
def test_header_entry_wrong(originals: Originals, kind: str, data: st.DataObject, value: object) -> None:
    with copy_of(originals[kind, 1]) as folder:
        header, content = split_file(folder / SINGLE_FILE)
        name = data.draw(st.sampled_from(sorted(header)))
        entry = dict(header[name])
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "all", "one more"]))
        if key in entry:
            assume(value != entry[key])
            entry[key] = value
        header[name] = {"all": value, "one more": {**entry, "other": value}}.get(key, entry)
        (folder / SINGLE_FILE).write_bytes(header_bytes(header) + content)
        assert_refused(folder)


@many
@given(kind=kinds, data=st.data(), shift=st.integers(-1000, 1000).filter(bool), grow=st.booleans())
def test_header_offsets_moved(
    originals: Originals, kind: str, data: st.DataObject, shift: int, grow: bool
) -> None:
    with copy_of(originals[kind, 1]) as folder:
        header, content = split_file(folder / SINGLE_FILE)
        begin, end = header[name := data.draw(st.sampled_from(sorted(header)))]["data_offsets"]
        header[name]["data_offsets"] = [begin if grow else begin + shift, end + shift]
        (folder / SINGLE_FILE).write_bytes(header_bytes(header) + content)
        assert_refused(folder)


@many
@given(kind=kinds, shards=st.sampled_from([1, SHARDS]), data=st.data(), new_name=names)
def test_tensor_removed_renamed_added_or_swapped(
    originals: Originals, kind: str, shards: int, data: st.DataObject, new_name: str
) -> None:
    """Files in perfect order that hold another model."""
    with copy_of(originals[kind, shards]) as folder:
        path = draw_file(folder, data)
        header, content = split_file(path)
        name = data.draw(st.sampled_from(sorted(header)))
        other = data.draw(st.sampled_from(sorted(header)))
        assume(new_name not in (*header, "__metadata__"))
        how = data.draw(st.sampled_from(["removed", "renamed", "added", "swapped"]))
        if how == "removed":
            begin, end = header.pop(name)["data_offsets"]
            content = content[:begin] + content[end:]
            for entry in header.values():
                entry["data_offsets"] = [at - (end - begin) * (at > begin) for at in entry["data_offsets"]]
        elif how == "renamed":
            header[new_name] = header.pop(name)
        elif how == "added":
            header[new_name] = {
                "dtype": "F32",
                "shape": [3],
                "data_offsets": [len(content), len(content) + 12],
            }
            content += bytes(12)
        else:
            assume(header[name]["shape"] != header[other]["shape"])
            header[name], header[other] = header[other], header[name]
        path.write_bytes(header_bytes(header) + content)
        assert_refused(folder)


@settings(many, max_examples=120)
@given(
    kind=kinds,
    data=st.data(),
    value=json_values | names | st.integers(0, SHARDS - 1).map(lambda i: shard_name(i, SHARDS)),
)
def test_index_entry_wrong(originals: Originals, kind: str, data: st.DataObject, value: object) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        index = json.loads((folder / INDEX_FILE).read_text())
        weight_map = index["weight_map"]
        name = data.draw(st.sampled_from(sorted(weight_map)) | names)
        assume(not isinstance(value, str) or str(PurePosixPath(value)) != weight_map.get(name))
        weight_map[name] = value
        write_json(folder / INDEX_FILE, index)
        assert_refused(folder)


@few
@given(kind=kinds, data=st.data(), value=json_values)
def test_index_structure_wrong(originals: Originals, kind: str, data: st.DataObject, value: object) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        index = json.loads((folder / INDEX_FILE).read_text())
        name = data.draw(st.sampled_from(sorted(index["weight_map"])))
        how = data.draw(st.sampled_from(["weight_map", "tensor", "metadata", "whole"]))
        if how == "weight_map":
            index["weight_map"] = value
        elif how == "tensor":
            del index["weight_map"][name]
        elif how == "metadata":
            assume(not isinstance(value, dict))
            index["metadata"] = value
        (folder / INDEX_FILE).write_text(json.dumps(value if how == "whole" else index))
        assert_refused(folder)


@many
@given(
    kind=kinds,
    order=st.permutations(range(SHARDS)),
    how=st.sampled_from(["moved", "removed", "doubled", "stale"]),
)
def test_shards_mixed_up(originals: Originals, kind: str, order: list[int], how: str) -> None:
    with copy_of(originals[kind, SHARDS]) as folder:
        first, second = (folder / shard_name(number, SHARDS) for number in order[:2])
        if how == "moved":
            assume(order != sorted(order))
            contents = [(folder / shard_name(number, SHARDS)).read_bytes() for number in range(SHARDS)]
            for number, source in enumerate(order):
                (folder / shard_name(number, SHARDS)).write_bytes(contents[source])
        elif how == "removed":
            first.unlink()
        elif how == "doubled":
            shutil.copy(first, second)
        else:
            shutil.copy(first, folder / shard_name(order[2], SHARDS + 1))
        assert_refused(folder)


@few
@given(kind=kinds, shards=st.sampled_from([1, SHARDS]), data=st.data())
def test_file_is_not_a_file(originals: Originals, kind: str, shards: int, data: st.DataObject) -> None:
    with copy_of(originals[kind, shards]) as folder:
        path = folder / data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
        path.unlink()
        how = data.draw(
            st.sampled_from(["absent", "folder", "dangling link", "link to itself", "garbage", "empty"])
        )
        if how == "folder":
            path.mkdir()
        elif how == "dangling link":
            path.symlink_to("absent")
        elif how == "link to itself":
            path.symlink_to(path.name)
        elif how == "garbage":
            path.write_bytes(data.draw(st.binary(min_size=1, max_size=200)))
        elif how == "empty":
            path.touch()
        assert_refused(folder)
