"""Profile selection, windows, memory layout and the graph policy: pure arithmetic against tiny references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.step import cache_names
from q2export.errors import GenerationError, PackageError
from q2export.runtime.backends.cuda.buffers import (
    ALIGNMENT,
    InputLayout,
    KVLayout,
    logits_bytes,
)
from q2export.runtime.backends.cuda.graphs import Action, GraphPolicy
from q2export.runtime.backends.cuda.steps import (
    Bounds,
    Step,
    StepProfile,
    plan_windows,
    read_profile,
)
from tests.runtime.tensorrt.fakes import DECODE, PREFILL, engine_info, ranges

PROFILES = (read_profile(0, PREFILL), read_profile(1, DECODE))


def profile(index: int, sequence: tuple[int, int], logits: tuple[int, int]) -> StepProfile:
    return StepProfile(index, Bounds(1, 4), Bounds(*sequence), Bounds(*logits), Bounds(1, 64))


def test_a_profile_is_read_from_all_inputs() -> None:
    assert PROFILES[0] == StepProfile(0, Bounds(1, 4), Bounds(1, 8), Bounds(1, 8), Bounds(1, 64))
    uneven = PREFILL | {"past_value.1": ((2, 2, 3, 4), (3, 2, 50, 4))}
    assert read_profile(0, uneven) == StepProfile(0, Bounds(2, 3), Bounds(1, 8), Bounds(1, 8), Bounds(3, 50))


def test_inputs_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(PackageError, match="optimization profile 2: its inputs allow no common capacity"):
        read_profile(2, PREFILL | {"past_key.0": ((1, 2, 65, 4), (4, 2, 70, 4))})


@pytest.mark.parametrize(
    ("width", "asked", "expected"),
    [
        # (profile, start, stop, sequence, logits, every position) of each call
        (1, 1, [(1, 0, 1, 1, 1, False)]),
        (1, 0, [(1, 0, 1, 1, 1, False)]),
        (1, 2, [(0, 0, 1, 1, 2, False)]),
        (8, 8, [(0, 0, 8, 8, 8, False)]),
        (5, 9, [(0, 0, 5, 5, 5, True)]),
        (9, 1, [(0, 0, 8, 8, 1, False), (1, 8, 9, 1, 1, False)]),
        (11, 11, [(0, 0, 8, 8, 8, True), (0, 8, 11, 3, 3, True)]),
    ],
)
def test_a_step_goes_to_the_narrowest_profile(
    width: int, asked: int, expected: list[tuple[int, int, int, int, int, bool]]
) -> None:
    windows = plan_windows(PROFILES, 2, width, asked, 16)
    assert [
        (one.profile.index, one.start, one.stop, one.sequence, one.logits, one.every_position)
        for one in windows
    ] == expected


def test_a_step_is_padded_to_what_the_profile_takes() -> None:
    (window,) = plan_windows([profile(0, (16, 32), (2, 4))], 1, 5, 1, 16)
    assert (window.sequence, window.logits) == (16, 2)
    cut = window.cut(Step(np.arange(5)[None], np.array([3]), np.array([5]), np.array([[4]])))
    assert cut.input_ids.tolist() == [[0, 1, 2, 3, 4, *[0] * 11]]
    assert (cut.past_lengths.tolist(), cut.query_lengths.tolist()) == ([3], [5])
    assert cut.logits_indices.tolist() == [[4, 0]]


def test_a_row_that_has_ended_repeats_its_last_token() -> None:
    windows = plan_windows(PROFILES, 2, 9, 1, 16)
    ids = np.array([range(1, 10), [21, 22, 23, 0, 0, 0, 0, 0, 0]])
    cut = windows[1].cut(Step(ids, np.array([5, 7]), np.array([9, 3]), np.array([[8], [2]])))
    assert cut.input_ids.tolist() == [[9], [23]]
    assert cut.past_lengths.tolist() == [5 + 8, 7 + 2]
    assert cut.query_lengths.tolist() == [1, 1]


@pytest.mark.parametrize(("rows", "capacity"), [(5, 16), (1, 65)])
def test_what_no_profile_takes_is_refused(rows: int, capacity: int) -> None:
    message = f"takes a batch of {rows} with a capacity of {capacity} tokens: batch 1 to 4, capacity 1 to 64;"
    with pytest.raises(GenerationError, match=message):
        plan_windows(PROFILES, rows, 1, 1, capacity)


@given(
    width=st.integers(1, 40),
    asked=st.integers(0, 40),
    prefill=st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(1, 3), st.integers(0, 9)),
    chunk=st.integers(1, 12),
)
def test_every_window_fits_its_profile_and_together_they_cover_the_step(
    width: int, asked: int, prefill: tuple[int, int, int, int], chunk: int
) -> None:
    low, more, fewest, more_logits = prefill
    profiles = [
        profile(0, (low, low + more), (fewest, fewest + more_logits)).narrowed(chunk),
        profile(1, (1, 1), (1, 1)),
    ]
    windows = plan_windows(profiles, 3, width, asked, 20)
    assert [one.start for one in windows[1:]] == [one.stop for one in windows[:-1]]
    assert (windows[0].start, windows[-1].stop) == (0, width)
    for one in windows:
        assert one.sequence in one.profile.sequence and one.logits in one.profile.logits
        assert one.stop - one.start <= one.sequence
        assert one.logits >= (one.stop - one.start if one.every_position else asked)


@given(
    layers=st.integers(1, 3),
    batch=st.integers(1, 4),
    heads=st.integers(1, 3),
    capacity=st.integers(1, 9),
    head_dim=st.sampled_from([4, 12, 64]),
    itemsize=st.sampled_from([2, 4]),
)
def test_the_arena_is_aligned_and_nothing_overlaps(
    layers: int, batch: int, heads: int, capacity: int, head_dim: int, itemsize: int
) -> None:
    layout = KVLayout(layers, batch, heads, capacity, head_dim, itemsize)
    slab = batch * heads * capacity * head_dim * itemsize
    bindings = layout.bindings(batch)
    assert len(bindings) == 4 * layers
    offsets = sorted({one.offset for one in bindings.values()})
    assert len(offsets) == 2 * layers
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert all(b - a >= slab for a, b in zip(offsets, [*offsets[1:], layout.bytes], strict=True))
    for names in cache_names(layers):
        assert bindings[names.present] == bindings[names.past]


def test_fewer_rows_lie_at_the_same_addresses() -> None:
    layout = KVLayout.of(engine_info(kv_dtype="bfloat16"), 4, 16)
    some, every = layout.bindings(2), layout.bindings(4)
    assert [one.offset for one in some.values()] == [one.offset for one in every.values()]
    assert some["past_value.1"].shape == (2, 2, 16, 4)
    assert layout.bytes == 2 * 3 * (4 * 2 * 16 * 4 * 2)


def test_rows_within_the_arena_begin_where_tensorrt_takes_an_address() -> None:
    layout = KVLayout(2, batch=4, num_key_value_heads=1, capacity=3, head_dim=64, itemsize=2)
    assert [layout.can_begin_at(row) for row in range(4)] == [True, False, True, False]
    whole, some = layout.bindings(4), layout.bindings(2, first=2)
    assert {some[name].offset - whole[name].offset for name in whole} == {2 * 384}  # bytes of a row
    assert some["past_value.1"].shape == (2, 1, 3, 64)


def test_a_row_is_moved_head_by_head() -> None:
    layout = KVLayout(
        num_hidden_layers=2, batch=3, num_key_value_heads=2, capacity=5, head_dim=64, itemsize=2
    )
    arena = np.random.default_rng(0).integers(0, 255, layout.bytes, np.uint8)
    slabs = arena.reshape(4, layout.slab_bytes)[:, : 3 * 2 * 5 * 128]
    expected = slabs.reshape(4, 3, 2, 5, 128).copy()
    expected[:, 0, :, :3] = expected[:, 2, :, :3]
    for copy in layout.row_copies(source=2, target=0, length=3):
        for piece in range(copy.height):
            source, target = copy.source + piece * copy.pitch, copy.target + piece * copy.pitch
            arena[target : target + copy.width] = arena[source : source + copy.width]
    assert (slabs.reshape(4, 3, 2, 5, 128) == expected).all()


def test_the_input_block() -> None:
    layout = InputLayout(rows=3, sequence=50, logits=2)
    found = {name: (one.offset, one.shape) for name, one in layout.bindings().items()}
    assert found == {
        "input_ids": (0, (3, 50)),
        "past_lengths": (1280, (3,)),  # 3 * 50 * 8 = 1200 bytes before it
        "query_lengths": (1536, (3,)),
        "logits_indices": (1792, (3, 2)),
    }
    assert layout.bytes == 2048
    assert (logits_bytes(1, 0, 100), logits_bytes(2, 3, 11)) == (256, 512)


def test_a_graph_is_captured_at_the_second_step_of_each_number_of_rows() -> None:
    policy = GraphPolicy()
    assert policy.action(2) is Action.RUN
    policy.ran(2)
    assert (policy.action(2), policy.action(1)) == (Action.CAPTURE, Action.RUN)
    policy.captured(2)
    policy.refused()
    policy.ran(1)
    assert (policy.action(2), policy.action(1)) == (Action.REPLAY, Action.RUN)


def test_profiles_narrowed_to_a_chunk() -> None:
    wide = StepProfile(0, Bounds(1, 4), Bounds(2, 512), Bounds(1, 512), Bounds(1, 64))
    assert (wide.narrowed(16).sequence, wide.narrowed(16).logits) == (Bounds(2, 16), Bounds(1, 16))
    assert wide.narrowed(1).sequence == Bounds(2, 2)
    few = read_profile(0, ranges((1, 4), (1, 512), (1, 4), (1, 64)))
    assert few.narrowed(16).logits == Bounds(1, 4)
