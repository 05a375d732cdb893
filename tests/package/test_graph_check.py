"""Graphs of strangers: refused before a library sees them, whatever their bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from q2export.contracts import opspec
from q2export.errors import PackageError
from q2export.package import graph_check
from q2export.package.graph_check import check_graph

SIZES = {"weights.safetensors": 1000}
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("q2export", 1)]


def external(name: str, location: str, offset: object, length: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 5])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def function(
    name: str, calls: list[tuple[str, str]], domain: str = "q2export", overload: str = ""
) -> onnx.FunctionProto:
    """x -> y through one node per (domain, op type)."""
    names = ["x", *(f"t{number}" for number in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node(op, [names[number]], [names[number + 1]], domain=of)
        for number, (of, op) in enumerate(calls)
    ]
    made = helper.make_function(domain, name, ["x"], ["y"], nodes, OPSETS)
    made.overload = overload
    return made


def good() -> onnx.ModelProto:
    """Two ops of ours, one body calling the other; weights outside, inside and in an attribute."""
    nodes = [
        helper.make_node("Q2MoE", ["x"], ["a"], domain="q2export", top_k=2),
        helper.make_node("Q2RotaryEmbedding", ["a"], ["b"], domain="q2export"),
        helper.make_node("Constant", [], ["c"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    weights = [
        external("w", "weights.safetensors", 960, 40),
        helper.make_tensor("inside", TensorProto.FLOAT, [3], b"123456789012", raw=True),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 5])
    graph = helper.make_graph(nodes, "g", [value], [helper.make_tensor_value_info("y", 1, None)], weights)
    functions = [
        function("Q2MoE", [("q2export", "Q2RotaryEmbedding"), ("", "Neg")]),
        function("Q2RotaryEmbedding", [("", "Neg"), ("", "Neg")]),
    ]
    return helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=11)


def check(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    check_graph(path, SIZES, "q2export build ...")


def test_graphs_of_our_own_are_taken(tmp_path: Path) -> None:
    model = good()
    model.graph.node[0].attribute.append(helper.make_attribute("axis", -1))
    model.graph.node[0].attribute.append(helper.make_attribute("sizes", [0, (1 << 31) - 1, -(1 << 31)]))
    model.graph.node.append(helper.make_node("Constant", [], ["d"], value_int=1 << 62))
    check(tmp_path, model.SerializeToString())


def branch(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Identity", ["x"], ["o"])
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("o", 1, [])])
        node = helper.make_node("If", ["x"], ["o"], then_branch=graph, else_branch=graph)
    return node


def chain(model: onnx.ModelProto) -> None:
    """Expanding 3,000 of these overflows ONNX Runtime's stack."""
    for number in range(3000):
        model.functions.append(function(f"F{number}", [("evil", f"F{number + 1}")], "evil"))


def bomb(model: onnx.ModelProto) -> None:
    """17 x 64 x 64 nodes of four functions with our names."""
    del model.functions[:]
    names = ["Q2MoE", "Q2GroupQueryAttention", "Q2RotaryAttention", "Q2RotaryEmbedding"]
    for name, inner in zip(names, [*names[1:], None], strict=True):
        model.functions.append(function(name, [("q2export", inner) if inner else ("", "Neg")] * 64))


def recursive(model: onnx.ModelProto) -> None:
    model.functions[1].node[0].op_type = "Q2MoE"


def second_graph(model: onnx.ModelProto) -> None:
    """What protobuf joins to the first."""
    model.graph.node.append(branch(1))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add(values=external("s", "/etc/passwd", 0, 40))


def training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.node.append(branch(1))


def weight(location: str, offset: object = 0, length: object = 40) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].CopyFrom(external("w", location, offset, length))

    return change


def entry(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.initializer[0].external_data.add(key=key, value=value) and None


def attribute(tensor: TensorProto) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Constant", [], ["d"], value=tensor))

    return change


def number(value: int | list[int]) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Q2MoE", ["x"], ["z"], domain="q2export", top_k=value))

    return change


def loop(depth: int) -> onnx.NodeProto:
    """Loops within one another, in the end a node."""
    node = helper.make_node("Neg", ["x"], ["n"])
    for _ in range(depth):
        node = helper.make_node("Loop", ["m", "go"], ["l"], body=helper.make_graph([node], "body", [], []))
    return node


def test_a_loop_in_a_function_of_ours_passes_and_its_nodes_count(tmp_path: Path) -> None:
    model = good()
    model.functions[0].node.append(loop(1))
    check(tmp_path, model.SerializeToString())
    body = model.functions[0].node[-1].attribute[0].g
    body.node.extend(helper.make_node("Neg", ["x"], [f"n{index}"]) for index in range(70_000))
    with pytest.raises(PackageError, match=r"has \d+ nodes, its functions expanded, more than 65536"):
        check(tmp_path, model.SerializeToString())


REFUSED: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (chain, r"holds the function 'evil\.F0', which is not q2export's"),
    (lambda m: m.functions.append(function("Q2MoE", [("", "Neg")], "evil")), r"function 'evil\.Q2MoE'"),
    (lambda m: m.functions.append(function("Other", [("", "Neg")])), r"function 'q2export\.Other'"),
    (lambda m: m.functions.append(function("Q2MoE", [("", "Neg")])), r"function 'q2export\.Q2MoE'"),
    (lambda m: m.functions.append(function("Q2MoE", [("", "Neg")], overload="x")), "an overloaded function"),
    (lambda m: m.functions[0].node.append(branch(1)), "a node with a subgraph"),
    (lambda m: m.functions[0].node.append(loop(2)), "a node with a subgraph"),
    (lambda m: m.graph.node.append(loop(1)), "a node with a subgraph"),
    (recursive, "holds the function Q2(MoE|RotaryEmbedding), which calls itself"),
    (bomb, r"has \d{8} nodes, its functions expanded, more than 65536"),
    (lambda m: m.graph.node.append(branch(1)), "a node with a subgraph"),
    (lambda m: m.graph.node.append(branch(12)), "a node with a subgraph"),
    (sparse, "holds a sparse tensor"),
    (training, "holds training information"),
    (weight("other.data"), r"reads weights from 'other\.data', which manifest\.json does not list"),
    (weight("/etc/passwd"), "reads weights from '/etc/passwd'"),
    (weight("../weights.safetensors"), r"reads weights from '\.\./weights"),
    (weight("./weights.safetensors"), r"reads weights from '\./weights"),
    (weight("*/_ORT_MEM_ADDR_/*", 0x400000), "reads weights from '.*_ORT_MEM_ADDR_"),
    (weight("w" * 200), "in a way that q2export does not write"),
    (weight("weights.safetensors", 961), r"at '961', of length '40', from 'weights\.safetensors' of 1000"),
    (weight("weights.safetensors", -1), "at '-1'"),
    (weight("weights.safetensors", 0, ""), "of length ''"),
    (weight("weights.safetensors", "9" * 120), "at '999"),
    (entry("location", "/etc/passwd"), "says twice where a weight is: location"),
    (entry("checksum", "x"), "in a way that q2export does not write"),
    (number(1 << 32), "the attribute 4294967296, which has more than 32 bits"),
    (number(-(1 << 31) - 1), "the attribute 18446744071562067967, which has more than 32 bits"),
    (number([1, 1 << 40]), "the attribute 1099511627776, which has more than 32 bits"),
    (attribute(external("t", "/etc/passwd", 0, 40)), "reads weights from '/etc/passwd'"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_what_no_graph_of_ours_holds_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = good()
    change(model)
    with pytest.raises(PackageError, match=rf"/model\.onnx: .*{message}.*; rebuild with: q2export build"):
        check(tmp_path, model.SerializeToString())


def test_graphs_in_pieces_are_seen_whole(tmp_path: Path) -> None:
    """protobuf joins the occurrences of one field: a second graph is part of the first."""
    more = onnx.ModelProto()
    more.graph.node.append(branch(1))
    content = good().SerializeToString() + more.SerializeToString()
    assert onnx.load_model_from_string(content).graph.node[-1].op_type == "If"
    with pytest.raises(PackageError, match="a node with a subgraph"):
        check(tmp_path, content)


def test_numbers_in_more_bytes_than_they_need_are_understood(tmp_path: Path) -> None:
    """Tag and size may be written with continuation bytes that add nothing."""
    body = onnx.ModelProto(functions=[function("F", [("", "Neg")], "evil")]).SerializeToString()
    assert body[:2] == b"\xca\x01"
    long = b"\xca\x81\x00" + bytes([body[2] | 128, 0]) + body[3:]
    content = good().SerializeToString() + long
    assert onnx.load_model_from_string(content).functions[-1].domain == "evil"
    with pytest.raises(PackageError, match=r"holds the function 'evil\.F'"):
        check(tmp_path, content)


def test_a_graph_too_large_to_be_ours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = good()
    empty = b"\x6a\x00" * (graph_check.MAX_ITEMS + 1)
    graph = b"\x3a" + varint(len(empty))
    with pytest.raises(PackageError, match="holds more than 262144 nodes and tensors"):
        check(tmp_path, model.SerializeToString() + graph + empty)
    monkeypatch.setattr(graph_check, "MAX_STRUCTURE_BYTES", 2000)
    model.doc_string = "x" * 2000
    with pytest.raises(PackageError, match=r"takes \d+ bytes beside its weights, more than 2000"):
        check(tmp_path, model.SerializeToString())
    model = good()
    model.graph.initializer[1].raw_data = bytes(5000)
    check(tmp_path, model.SerializeToString())


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


@pytest.mark.parametrize(
    "content", [b"graph", b"\x08\x0b", b"\x3a\x05", b"\x3a\x00", b"\x0b\x0c", b"\xff" * 20, b"\x3a\xff\xff"]
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PackageError, match=r"/model\.onnx: is (no ONNX model|damaged)"):
        check(tmp_path, content)
    with pytest.raises(PackageError, match=r"expected an ONNX model, found a file of 0 bytes"):
        check(tmp_path, b"")


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in nodes(model):
        for each in node.attribute:
            yield from ([each.t] if each.HasField("t") else [])
            yield from each.tensors


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for each in model.functions:
        yield from each.node


CONTENT = good().SerializeToString()
HOSTILE = [
    onnx.ModelProto(functions=[function("F", [("", "Neg")], "evil")]).SerializeToString(),
    onnx.ModelProto(graph=onnx.GraphProto(node=[branch(1)])).SerializeToString(),
    onnx.ModelProto(graph=onnx.GraphProto(initializer=[external("e", "/x", 0, 4)])).SerializeToString(),
    external("e", "/x", 0, 4).SerializeToString(),
    branch(1).SerializeToString(),
    branch(1).attribute[0].SerializeToString(),
]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(CONTENT)),
            st.integers(0, 12),
            st.binary(max_size=6) | st.sampled_from(HOSTILE),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_passes_is_harmless_to_the_library_too(
    tmp_path: Path, edits: list[tuple[int, int, bytes]]
) -> None:
    """Whatever bytes are changed: a file that is taken holds nothing of a stranger's, says protobuf."""
    content = CONTENT
    for position, removed, added in edits:
        content = content[:position] + added + content[position + removed :]
    try:
        check(tmp_path, content)
        model = onnx.load_model_from_string(content)
    except (PackageError, DecodeError):
        return
    assert {(each.domain, each.name in opspec.BY_NAME) for each in model.functions} <= {("q2export", True)}
    assert not any(
        each.HasField("g") or each.graphs or each.sparse_tensors or each.HasField("sparse_tensor")
        for node in nodes(model)
        for each in node.attribute
    )
    assert not model.graph.sparse_initializer
    for tensor in tensors(model):
        fields = {each.key: each.value for each in tensor.external_data}
        assert not fields or fields["location"] in SIZES
        assert not fields or int(fields["offset"]) + int(fields["length"]) <= 1000
