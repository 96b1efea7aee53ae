"""Reading requests: groups, lanes, lengths, and what is refused."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
from helpers import in_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import Padding
from steelworks.errors import InvalidInputError
from steelworks.plans.inputs import InputReader, Reading

Point = namedtuple("Point", "x y")


def tokens(length: int, rows: int = 1, **more: Any) -> dict[str, Any]:
    ids = torch.ones(rows, length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": ids.clone(), **more}


def call_with(reading: Reading) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return reading.lane.group.rebuild(reading.leaves)


# ---------------------------------------------------------------- groups and lanes


def test_requests_of_one_shape_share_a_group_and_a_lane_whatever_their_rows() -> None:
    reader = InputReader()
    one, two = reader.read(torch.zeros(1, 4)), reader.read(torch.zeros(3, 4))
    assert one.lane is two.lane
    assert (one.rows, two.rows) == (1, 3)


@pytest.mark.parametrize(
    "other",
    [
        torch.zeros(1, 5),
        torch.zeros(1, 4, 1),
        torch.zeros(1, 4, dtype=torch.float64),
        (torch.zeros(1, 4),),
        {"x": torch.zeros(1, 4)},
        [torch.zeros(1, 4)],
    ],
    ids=["width", "dimensions", "dtype", "tuple", "dict", "list"],
)
def test_requests_that_differ_in_shape_dtype_or_structure_have_different_groups(other: Any) -> None:
    reader = InputReader()
    assert reader.read(torch.zeros(1, 4)).lane.group is not reader.read(other).lane.group
    assert reader.read(torch.zeros(1, 4)).lane.group is not reader.read(other).lane.group, "asked again too"


def test_the_shape_read_last_is_not_mistaken_for_another() -> None:
    reader = InputReader()
    readings = [
        reader.read(torch.zeros(rows, width)) for rows, width in ((1, 4), (1, 4), (2, 4), (1, 5), (1, 4))
    ]
    assert [reading.rows for reading in readings] == [1, 1, 2, 1, 1]
    groups = [reading.lane.group for reading in readings]
    assert groups[0] is groups[1] is groups[2] is groups[4] is not groups[3]
    assert reader.read(torch.zeros(1, 4, dtype=torch.int64)).lane.group is not groups[0]
    with pytest.raises(InvalidInputError):
        reader.read(torch.zeros(1, 4, device="meta"))


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: {"a": torch.zeros(1, 4), "b": x}], ids=["tensor", "dict"]
)
def test_requests_on_different_devices_have_different_groups(wrap: Any) -> None:
    reader = InputReader(devices=("cpu", "meta"))
    groups = [
        reader.read(wrap(torch.zeros(1, 4, device=device))).lane.group for device in ("cpu", "meta", "cpu")
    ]
    assert groups[0] is groups[2]
    assert groups[1] is not groups[0]


def test_dicts_of_other_keys_or_order_have_groups_of_their_own_and_keep_their_names() -> None:
    reader = InputReader()
    a, b = torch.zeros(1, 2), torch.ones(1, 2)
    first, second = reader.read({"a": a, "b": b}), reader.read({"b": b, "a": a})
    assert first.lane.group is not second.lane.group
    assert call_with(first)[1]["a"] is a
    assert call_with(second)[1]["a"] is a


@pytest.mark.parametrize(("length", "lane"), [(1, 8), (7, 8), (8, 8), (9, 16), (16, 16), (17, 24)])
def test_lengths_are_put_into_lanes_of_a_multiple(length: int, lane: int) -> None:
    reading = InputReader(Padding()).read(tokens(length))
    assert (reading.length, reading.lane.length) == (length, lane)


def test_lengths_of_one_group_differ_in_lane_only() -> None:
    reader = InputReader(Padding(multiple=4))
    short, long, longer = (reader.read(tokens(n)) for n in (3, 4, 5))
    assert short.lane is long.lane
    assert long.lane is not longer.lane
    assert long.lane.group is longer.lane.group
    assert (short.length, long.length) == (3, 4)


def test_a_bucket_function_decides_the_lane() -> None:
    reading = InputReader(Padding(), bucket=lambda length: 100 * length).read(tokens(7))
    assert reading.lane.length == 700


def test_the_sequence_inputs_are_those_named_and_the_mask() -> None:
    request = tokens(7, token_type_ids=torch.zeros(1, 7, dtype=torch.long), labels=torch.zeros(1, 7))
    group = InputReader(Padding()).read(request).lane.group
    assert [group.names[i] for i in group.sequence] == ["input_ids", "attention_mask", "token_type_ids"]
    assert group.names[group.mask_index] == "attention_mask"


def test_embeddings_are_padded_along_their_sequence_only() -> None:
    reading = InputReader(Padding()).read(
        {"inputs_embeds": torch.zeros(2, 5, 8), "attention_mask": torch.ones(2, 5)}
    )
    assert reading.lane.group.sequence == (0, 1)
    assert reading.length == 5


@pytest.mark.parametrize(
    "request_",
    [
        {"input_ids": torch.ones(1, 7)},
        {"input_ids": torch.ones(1, 7), "attention_mask": torch.ones(1, 8)},
        {"input_ids": torch.ones(1, 7), "attention_mask": torch.ones(1, 7, 7)},
        {"input_ids": torch.ones(1, 0), "attention_mask": torch.ones(1, 0)},
        {"input_ids": torch.ones(1), "attention_mask": torch.ones(1, 7)},
        torch.ones(1, 7),
        (torch.ones(1, 7), torch.ones(1, 7)),
    ],
    ids=["no mask", "lengths differ", "3-D mask", "no positions", "1-D ids", "tensor", "tuple"],
)
def test_what_can_t_be_padded_is_batched_by_exact_shape(request_: Any) -> None:
    reading = InputReader(Padding()).read(request_)
    assert reading.lane.group.sequence == ()
    assert reading.lane.length == 0


def test_without_padding_every_length_is_a_group_of_its_own() -> None:
    reader = InputReader(None)
    assert reader.read(tokens(7)).lane.group is not reader.read(tokens(8)).lane.group


def test_pad_values_and_names_are_the_user_s() -> None:
    padding = Padding(inputs=("ids",), mask="keep", values={"ids": 9})
    group = InputReader(padding).read({"ids": torch.ones(1, 3), "keep": torch.ones(1, 3)}).lane.group
    assert group.sequence == (0, 1)
    assert group.pad_values == (9, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"multiple": 0}, "multiple is 0"), ({"values": {"attention_mask": 1}}, "other than 0")],
)
def test_padding_that_makes_no_sense_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Padding(**options)


# ---------------------------------------------------------------- how the model is called


def test_a_tensor_is_the_only_argument() -> None:
    x = torch.zeros(1, 2)
    args, kwargs = call_with(InputReader().read(x))
    assert args[0] is x
    assert (len(args), kwargs) == (1, {})


def test_a_tuple_is_spread_over_the_arguments() -> None:
    a, b = torch.zeros(1, 2), torch.ones(1, 3)
    args, kwargs = call_with(InputReader().read((a, [b, 5], "mode")))
    assert args[0] is a
    assert args[1][0] is b
    assert args[1][1] == 5
    assert args[2] == "mode"
    assert kwargs == {}


def test_a_namedtuple_is_spread_like_a_tuple() -> None:
    a, b = torch.zeros(1, 2), torch.ones(1, 3)
    args, _ = call_with(InputReader().read(Point(a, b)))
    assert args[0] is a
    assert args[1] is b


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_mapping_is_spread_over_the_names(kind: Any) -> None:
    a, b = torch.zeros(1, 2), torch.ones(1, 3)
    args, kwargs = call_with(InputReader().read(kind(a=a, b=b)))
    assert args == ()
    assert kwargs["a"] is a
    assert kwargs["b"] is b


def test_a_mapping_with_constants_and_nesting_comes_back_as_it_was() -> None:
    a, b = torch.zeros(1, 2), torch.ones(1, 3)
    request = {"a": a, "deep": {"b": [b, None, 2.5]}, "flag": True}
    _, kwargs = call_with(InputReader().read(request))
    assert kwargs["a"] is a
    assert kwargs["deep"]["b"][0] is b
    assert kwargs["deep"]["b"][1:] == [None, 2.5]
    assert kwargs["flag"] is True


def test_unbatched_requests_get_a_batch_dimension() -> None:
    reader = InputReader(Padding(), unbatched=True)
    for request, shape in (
        (torch.zeros(4), (1, 4)),
        (torch.tensor(1.0), (1,)),
        ((torch.zeros(2, 3),), (1, 2, 3)),
    ):
        reading = reader.read(request)
        assert (reading.rows, tuple(reading.leaves[0].shape)) == (1, shape)
    reading = reader.read({"input_ids": torch.ones(5), "attention_mask": torch.ones(5)})
    assert (reading.rows, reading.length, reading.lane.length) == (1, 5, 8)
    scalars = UserDict(a=torch.tensor(1), b=torch.tensor(2.0))
    assert [tuple(t.shape) for t in reader.read(scalars).leaves] == [(1,), (1,)]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), {"a": torch.zeros(0, 3)}, (torch.zeros(0, 3),)])
def test_no_rows_are_refused_every_time(bad: Any) -> None:
    reader = InputReader()
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="0 rows"):
            reader.read(bad)


def test_different_row_counts_are_refused_in_a_tuple_and_with_constants_too() -> None:
    for bad in (
        (torch.zeros(1, 4), torch.zeros(2, 4)),
        {"x": torch.zeros(2, 4), "y": torch.zeros(3, 4), "k": 5},
    ):
        with pytest.raises(InvalidInputError, match="different row counts"):
            InputReader().read(bad)


def test_different_row_counts_are_refused_with_all_shapes() -> None:
    with pytest.raises(InvalidInputError, match=r"'a': \[1, 2\], 'b': \[3, 2\]"):
        InputReader().read({"a": torch.zeros(1, 2), "b": torch.zeros(3, 2)})


def test_a_tensor_on_another_device_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidInputError, match="input 'b' is on meta; inputs must be on cpu"):
        InputReader().read({"a": torch.zeros(1, 2), "b": torch.zeros(1, 2, device="meta")})


def test_a_sparse_tensor_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="dense"):
        InputReader().read(torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    "bad", [{"x": [1.0, 2.0]}, "text", 3, None, (), {"x": None}, object()], ids=lambda v: type(v).__name__
)
def test_a_request_without_tensors_is_refused_with_what_it_was(bad: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"the request is .*no tensor"):
        InputReader().read(bad)


def test_what_was_refused_once_does_not_make_a_later_good_request_fail() -> None:
    reader = InputReader()
    for bad in (torch.zeros(0, 4), torch.zeros(1, 4, device="meta"), "text"):
        with pytest.raises(InvalidInputError):
            reader.read(bad)
    assert reader.read(torch.zeros(1, 4)).rows == 1


def test_an_example_fixes_structure_dtypes_and_dimensions_but_not_sizes() -> None:
    reader = InputReader(expect={"x": torch.zeros(1, 4), "y": torch.zeros(1, dtype=torch.long)})
    reader.read({"x": torch.zeros(5, 9), "y": torch.zeros(5, dtype=torch.long)})
    for bad, words in (
        ({"x": torch.zeros(1, 4)}, "the example has"),
        ({"x": torch.zeros(1, 4), "z": torch.zeros(1, dtype=torch.long)}, "the example has"),
        ({"x": torch.zeros(1, 4).double(), "y": torch.zeros(1, dtype=torch.long)}, "torch.float64"),
        ({"x": torch.zeros(1, 4, 4), "y": torch.zeros(1, dtype=torch.long)}, "3 dimensions"),
    ):
        for _ in range(2):
            with pytest.raises(InvalidInputError, match=words):
                reader.read(bad)


# ---------------------------------------------------------------- threads, memory


def test_threads_that_read_new_shapes_at_once_get_one_group_and_lane_each() -> None:
    for _ in range(20):
        reader = InputReader(Padding())
        lanes = in_threads(
            8, lambda index, reader=reader: [reader.read(tokens(n)).lane for n in range(1, 30)]
        )
        assert all(a is b for own in lanes for a, b in zip(own, lanes[0], strict=True))


def test_groups_and_lanes_are_made_under_the_lock_of_the_reader() -> None:
    held: list[bool] = []

    def bucket(length: int) -> int:
        held.append(reader._lock.locked())
        return length

    reader = InputReader(Padding(), bucket=bucket)
    reader.read(tokens(3))
    assert held == [True]


def test_old_shapes_are_forgotten_and_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    import steelworks.plans.inputs as inputs

    monkeypatch.setattr(inputs, "_MAX_SHAPES_REMEMBERED", 10)
    reader = InputReader(Padding())
    first = reader.read(tokens(1))
    for length in range(2, 100):
        assert reader.read(tokens(length)).length == length
        assert len(reader._shapes) <= 10
    assert reader.read(tokens(1)).lane is first.lane


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 20), st.sampled_from([torch.int64, torch.int32])),
        min_size=1,
        max_size=20,
    )
)
def test_whatever_is_read_has_its_own_rows_length_and_tensors(
    shapes: list[tuple[int, int, torch.dtype]],
) -> None:
    reader = InputReader(Padding(multiple=4))
    groups = {}
    for rows, length, dtype in shapes:
        request = {name: tensor.to(dtype) for name, tensor in tokens(length, rows).items()}
        reading = reader.read(request)
        assert (reading.rows, reading.length) == (rows, length)
        assert reading.lane.length == -(-length // 4) * 4
        assert all(a is b for a, b in zip(reading.leaves, request.values(), strict=True))
        assert groups.setdefault(dtype, reading.lane.group) is reading.lane.group
