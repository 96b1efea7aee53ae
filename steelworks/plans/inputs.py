"""Reading a request: its tensors, how many rows it has, and which lane it waits in.

Requests that may share a batch have the same *group*: the same structure, dtypes and trailing
shapes. Inside a group, requests of similar length share a *lane*. Reading happens in the caller's
thread, and takes about a microsecond when the shape has been seen before.

The model is called as the user would call it: ``model(x)`` for a tensor, ``model(*x)`` for a tuple
or list, ``model(**x)`` for a mapping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from steelworks.errors import InvalidInputError

# The sequence inputs of Hugging Face tokenizers and models: dim 1 is the sequence.
SEQUENCE_INPUTS = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "special_tokens_mask",
    "inputs_embeds",
)
# A service that sees more distinct shapes than this forgets the oldest half of them.
_MAX_SHAPES_REMEMBERED = 8192
# Past this many groups (a constant that differs from request to request makes one each) all are forgotten.
_MAX_GROUPS_REMEMBERED = 8192


@dataclass(frozen=True)
class Padding:
    """Which inputs may be padded along dim 1, and with what.

    Padding applies only when a request is a mapping that has ``mask``: without a mask a padded
    model would answer something else. Requests without it are batched by exact shape.

    Attributes:
        inputs: names of the inputs whose dim 1 is the sequence.
        mask: name of the mask, shape [rows, length], 1 for a real position. Padded with 0.
        values: the padding value of each input; those not named are padded with 0.
        multiple: lanes are this many positions wide, so similar lengths share a batch.
    """

    inputs: tuple[str, ...] = SEQUENCE_INPUTS
    mask: str = "attention_mask"
    values: Mapping[str, float] = field(default_factory=dict)
    multiple: int = 8

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"Padding.multiple is {self.multiple}; it must be 1 or more")
        if self.values.get(self.mask, 0) != 0:
            raise ValueError(
                f"Padding.values pads the mask {self.mask!r} with a value other than 0; leave it out"
            )


class Group:
    """Requests of one structure, dtypes and trailing shapes: those that may share a batch.

    Attributes:
        names: a name for each tensor, for messages and padding.
        dtypes: the dtype of each tensor.
        sequence: indices of the tensors whose dim 1 is padded; empty when padding is not possible.
        pad_values: the padding value of each tensor.
        mask_index: index of the mask among the tensors, or -1.
        state: what a plan has learned of this group (for example its output layout).
    """

    __slots__ = ("dtypes", "mask_index", "names", "pad_values", "rebuild", "sequence", "state")

    def __init__(
        self,
        names: tuple[str, ...],
        dtypes: tuple[torch.dtype, ...],
        rebuild: Callable[[Sequence[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]],
        sequence: tuple[int, ...] = (),
        pad_values: tuple[float, ...] = (),
        mask_index: int = -1,
    ) -> None:
        self.names = names
        self.dtypes = dtypes
        self.rebuild = rebuild
        self.sequence = sequence
        self.pad_values = pad_values
        self.mask_index = mask_index
        self.state: dict[Any, Any] = {}


class Lane:
    """Requests of one group whose lengths are close: the unit in which requests wait.

    Attributes:
        group: the group.
        length: the longest sequence in this lane; 0 where nothing is padded.
    """

    __slots__ = ("group", "length")

    def __init__(self, group: Group, length: int) -> None:
        self.group = group
        self.length = length

    def __repr__(self) -> str:
        return f"Lane(inputs={self.group.names}, length={self.length})"


class Reading:
    """A request as read: its tensors, its rows, the lane it belongs to and its own length.

    A plain class and not a dataclass: one is made for every request, and this is the cheapest way.
    """

    __slots__ = ("lane", "leaves", "length", "rows")

    def __init__(self, leaves: tuple[torch.Tensor, ...], rows: int, lane: Lane, length: int) -> None:
        self.leaves = leaves
        self.rows = rows
        self.lane = lane
        self.length = length


class InputReader:
    """Reads requests into :class:`Reading`; safe to call from any thread.

    Args:
        padding: which inputs may be padded, or None to batch by exact shape only.
        bucket: maps a sequence length to its lane's length; by default the next multiple of
            ``padding.multiple``.
        unbatched: requests carry no batch dimension; one is added here.
        expect: an example every request must match in structure, dtypes and dimensions.
        devices: device types a request's tensors may live on.
    """

    def __init__(
        self,
        padding: Padding | None = None,
        *,
        bucket: Callable[[int], int] | None = None,
        unbatched: bool = False,
        expect: object = None,
        devices: tuple[str, ...] = ("cpu",),
    ) -> None:
        self._padding = padding
        self._bucket = bucket
        self._unbatched = unbatched
        self._devices = devices
        self._lock = threading.Lock()
        self._shapes: dict[Hashable, tuple[Lane, int]] = {}
        self._groups: dict[Hashable, Group] = {}
        self._lanes: dict[tuple[int, int], Lane] = {}
        # The shape read last, for callers that send one shape after the other.
        self._last: tuple[torch.Size, torch.dtype, torch.device, int, Lane, int] | None = None
        self._expected: Group | None = None
        self._expected_shapes: tuple[torch.Size, ...] = ()
        if expect is not None:
            reading = self.read(expect)
            self._expected = reading.lane.group
            self._expected_shapes = tuple(t.shape for t in reading.leaves)

    def read(self, request: object) -> Reading:
        """Read one request.

        Raises:
            InvalidInputError: no tensors, different row counts, no rows, a device other than
                the allowed ones, or a structure or dtype other than the example's.
        """
        kind = type(request)
        if kind is dict:
            names: Hashable = tuple(request)  # type: ignore[arg-type]
            leaves = tuple(request.values())  # type: ignore[attr-defined]
        elif kind is torch.Tensor or isinstance(request, torch.Tensor):
            last = self._last
            if (
                last is not None
                and request.shape == last[0]  # type: ignore[attr-defined]
                and request.dtype is last[1]  # type: ignore[attr-defined]
                and request.device == last[2]  # type: ignore[attr-defined]
            ):
                return Reading((request,), last[3], last[4], last[5])  # type: ignore[arg-type]
            names = None
            leaves = (request,)
        else:
            return self._read_tree(request)
        if self._unbatched:
            leaves = tuple(t.unsqueeze(0) if isinstance(t, torch.Tensor) else t for t in leaves)
        try:
            first = leaves[0].shape
            rows = first[0]
            if len(leaves) == 1:
                key: Hashable = (names, leaves[0].dtype, first[1:], leaves[0].device)
            else:
                parts: list[Hashable] = [names]
                for leaf in leaves:
                    shape = leaf.shape
                    if shape[0] != rows:
                        raise _uneven(names, leaves)
                    parts.append(leaf.dtype)
                    parts.append(shape[1:])
                    parts.append(leaf.device)
                key = tuple(parts)
            found = self._shapes.get(key)
        except (AttributeError, IndexError, TypeError):
            return self._read_tree(request)
        if found is None:
            found = self._learn(key, names, leaves, rows)
        if rows == 0:
            raise InvalidInputError(
                "the request has 0 rows; there is nothing to run: skip the call, or pass 1 row or more"
            )
        if names is None and not self._unbatched:
            self._last = (first, leaves[0].dtype, leaves[0].device, rows, found[0], found[1])
        return Reading(leaves, rows, found[0], found[1])

    def _learn(self, key: Hashable, names: Hashable, leaves: tuple[Any, ...], rows: int) -> tuple[Lane, int]:
        """Find the lane of a shape seen for the first time."""
        for index, leaf in enumerate(leaves):
            self._check_leaf(_name(names, index), leaf)
        if names is None:
            labels: tuple[str, ...] = ("input",)

            def rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return (tensors[0],), {}

        else:
            labels = names  # type: ignore[assignment]
            if not all(isinstance(label, str) for label in labels):
                raise InvalidInputError(
                    f"the request's keys are {labels}; a mapping is passed as model(**request), so keys "
                    "must be strings"
                )

            def rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return (), dict(zip(labels, tensors, strict=True))

        return self._intern(key, labels, leaves, rebuild, extra=names)

    def _read_tree(self, request: object) -> Reading:
        """The general way: any nesting of tuples, lists and mappings, constants included."""
        if isinstance(request, Mapping) and type(request) is not dict:
            request = dict(request)  # BatchEncoding and its like
            if (
                all(isinstance(value, torch.Tensor) and value.dim() > 0 for value in request.values())
                and request
            ):
                return self.read(request)
        flat, spec = pytree.tree_flatten(request)
        is_tensor = [isinstance(leaf, torch.Tensor) for leaf in flat]
        leaves = tuple(leaf for leaf, tensor in zip(flat, is_tensor, strict=True) if tensor)
        statics = tuple(leaf for leaf, tensor in zip(flat, is_tensor, strict=True) if not tensor)
        if not leaves:
            raise InvalidInputError(
                f"the request is {_short(request)}, which holds no tensor; pass a tensor, or a tuple or dict "
                "of tensors (torch.from_numpy(x) makes one of an array), or give the queue collate and split functions"
            )
        if self._unbatched:
            leaves = tuple(leaf.unsqueeze(0) for leaf in leaves)
        labels = tuple(_paths(spec, is_tensor, request))
        for label, leaf in zip(labels, leaves, strict=True):
            self._check_leaf(label, leaf)
        rows = leaves[0].shape[0]
        if any(leaf.shape[0] != rows for leaf in leaves):
            raise _uneven(labels, leaves)
        if rows == 0:
            raise InvalidInputError(
                "the request has 0 rows; there is nothing to run: skip the call, or pass 1 row or more"
            )
        try:
            extra: Hashable = (str(spec), tuple(_exactly(constant) for constant in statics))
            hash(extra)
        except TypeError:
            raise InvalidInputError(
                f"the request holds a constant that can't be compared ({_short(statics)}); pass tensors, or "
                "plain numbers and strings"
            ) from None

        def rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            supply, constants = iter(tensors), iter(statics)
            tree = pytree.tree_unflatten(
                [next(supply) if tensor else next(constants) for tensor in is_tensor], spec
            )
            return ((), dict(tree)) if isinstance(tree, Mapping) else (tuple(tree), {})

        key = (extra, *((leaf.dtype, leaf.shape[1:], leaf.device) for leaf in leaves))
        found = self._shapes.get(key) or self._intern(key, labels, leaves, rebuild, extra=extra)
        return Reading(leaves, rows, *found)

    def _intern(
        self,
        key: Hashable,
        labels: tuple[str, ...],
        leaves: tuple[torch.Tensor, ...],
        rebuild: Callable[[Sequence[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]],
        extra: Hashable,
    ) -> tuple[Lane, int]:
        sequence, length, mask_index = self._sequence(labels, leaves)
        trailing = tuple(tuple(leaf.shape[2 if i in sequence else 1 :]) for i, leaf in enumerate(leaves))
        dtypes = tuple(leaf.dtype for leaf in leaves)
        group_key = (extra, dtypes, trailing, sequence, tuple(leaf.device for leaf in leaves))
        values = self._padding.values if self._padding is not None else {}
        with self._lock:
            group = self._groups.get(group_key)
            if group is None:
                pads = tuple(values.get(label, 0) for label in labels)
                group = Group(labels, dtypes, rebuild, sequence, pads, mask_index)
                self._check_expected(group, leaves)
                if len(self._groups) >= _MAX_GROUPS_REMEMBERED:
                    self._groups.clear()
                    self._lanes.clear()
                    self._shapes.clear()
                self._groups[group_key] = group
            bucket = self._bucket_of(length) if sequence else 0
            lane = self._lanes.setdefault((id(group), bucket), Lane(group, bucket))
            if len(self._shapes) >= _MAX_SHAPES_REMEMBERED:
                for old in list(self._shapes)[: _MAX_SHAPES_REMEMBERED // 2]:
                    del self._shapes[old]
            self._shapes[key] = (lane, length)
            return lane, length

    def forked(self) -> None:
        """This is a forked child: whoever held the lock stayed in the parent."""
        self._lock = threading.Lock()

    def _bucket_of(self, length: int) -> int:
        if self._bucket is not None:
            return self._bucket(length)
        multiple = self._padding.multiple if self._padding is not None else 1
        return -(-length // multiple) * multiple

    def _sequence(
        self, labels: tuple[str, ...], leaves: tuple[torch.Tensor, ...]
    ) -> tuple[tuple[int, ...], int, int]:
        if self._padding is None or self._padding.mask not in labels:
            return (), 0, -1
        mask_index = labels.index(self._padding.mask)
        mask = leaves[mask_index]
        if mask.dim() != 2 or mask.shape[1] == 0:
            return (), 0, -1
        length = int(mask.shape[1])
        sequence = []
        for index, (label, leaf) in enumerate(zip(labels, leaves, strict=True)):
            if index == mask_index or label in self._padding.inputs:
                if leaf.dim() < 2 or leaf.shape[1] != length:
                    return (), 0, -1  # the model will say what is wrong with it
                sequence.append(index)
        return tuple(sequence), length, mask_index

    def _check_leaf(self, label: str, leaf: object) -> None:
        if not isinstance(leaf, torch.Tensor):
            raise InvalidInputError(
                f"input {label!r} is {_short(leaf)}, not a tensor; pass a tensor with a leading batch "
                "dimension"
            )
        if leaf.dim() == 0:
            raise InvalidInputError(
                f"input {label!r} has no batch dimension (shape []); pass shape [rows, ...], for example "
                "x.reshape(1)"
            )
        if leaf.layout != torch.strided or leaf.is_quantized:
            raise InvalidInputError(
                f"input {label!r} is a {leaf.layout} tensor; pass a dense one, for example x.to_dense()"
            )
        if leaf.device.type not in self._devices:
            allowed = " or ".join(self._devices)
            raise InvalidInputError(
                f"input {label!r} is on {leaf.device}; inputs must be on {allowed}, and the queue copies "
                "them: pass x.cpu()"
            )

    def _check_expected(self, group: Group, leaves: tuple[torch.Tensor, ...]) -> None:
        want = self._expected
        if want is None:
            return
        if group.names != want.names:
            raise InvalidInputError(
                f"the request has the inputs {list(group.names)}; the example has {list(want.names)}, in "
                "this order: pass the same"
            )
        for label, dtype, wanted in zip(group.names, group.dtypes, want.dtypes, strict=True):
            if dtype != wanted:
                raise InvalidInputError(
                    f"input {label!r} is {dtype}; the example is {wanted}: pass x.to({wanted})"
                )
        for label, leaf, shape in zip(group.names, leaves, self._expected_shapes, strict=True):
            dims = len(shape)
            if leaf.dim() != dims:
                raise InvalidInputError(
                    f"input {label!r} has shape {list(leaf.shape)} ({leaf.dim()} dimensions); the example "
                    f"has {dims}: pass {_rows_of(shape, self._unbatched)} alike"
                )

    def unlike_example(self, reading: Reading) -> str:
        """How the shapes of a request differ from the example's, for a model that failed on it; "" if not.

        Other sizes are no error by themselves: many models take images or sequences of any size.
        """
        group = reading.lane.group
        differences = [
            f"input {label!r} has shape {_rows_of(leaf.shape, self._unbatched)}, the example "
            f"{_rows_of(shape, self._unbatched)}"
            for index, (label, leaf, shape) in enumerate(
                zip(group.names, reading.leaves, self._expected_shapes, strict=False)
            )
            if leaf.shape[2 if index in group.sequence else 1 :]
            != shape[2 if index in group.sequence else 1 :]
        ]
        return "; ".join(differences)


def _rows_of(shape: Sequence[int], unbatched: bool) -> str:
    """``shape`` as a request has it, whatever its number of rows."""
    sizes = [str(size) for size in shape[1:]]
    return f"[{', '.join(sizes if unbatched else ['rows', *sizes])}]"


def _exactly(constant: Any) -> Hashable:
    """A key that tells constants apart which only compare equal: 1 and True and 1.0, 0.0 and -0.0."""
    return type(constant), repr(constant) if isinstance(constant, float) else constant


def _name(names: Hashable, index: int) -> str:
    return "input" if names is None else str(names[index])  # type: ignore[index]


def _uneven(names: Hashable, leaves: tuple[Any, ...]) -> InvalidInputError:
    shapes = {_name(names, i): list(getattr(leaf, "shape", ())) for i, leaf in enumerate(leaves)}
    return InvalidInputError(
        f"the inputs have different row counts in dim 0: {shapes}; pass the same number of rows in each"
    )


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value!r}"
    return text if len(text) < 80 else text[:77] + "..."


def _paths(spec: pytree.TreeSpec, is_tensor: Sequence[bool], request: object) -> list[str]:
    del spec
    with_paths, _ = pytree.tree_flatten_with_path(request)
    names = [pytree.keystr(path).strip("[]'\".") or "input" for path, _ in with_paths]
    return [name for name, tensor in zip(names, is_tensor, strict=True) if tensor]
