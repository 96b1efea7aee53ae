"""Masks that compiled attention gets, and copies through pinned memory (those need a GPU)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from steelworks.plans import _masks
from steelworks.plans._masks import WholeMasks, whole


def expanded(keys: int = 32) -> torch.Tensor:
    """A mask that is true everywhere, as transformers makes it: one element, expanded."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(1, 1, keys, keys)


def queries(rows: int, length: int = 32) -> torch.Tensor:
    return torch.randn(rows, 2, length, 8)


def test_an_expanded_mask_is_stored_whole_and_says_the_same() -> None:
    mask = expanded()
    made = whole(mask, queries(2))
    assert made is not None and made.stride(-1) == 1
    assert torch.equal(made, mask)


@pytest.mark.parametrize(("rows", "length", "stored"), [(32, 64, True), (33, 64, False), (33, 65, True)])
def test_many_short_rows_keep_the_form_that_is_faster_for_them(rows: int, length: int, stored: bool) -> None:
    made = whole(expanded(length), queries(rows, length))
    assert made is not None and (made.stride(-1) == 1) is stored


def test_a_whole_mask_and_no_mask_are_passed_on_as_they_are() -> None:
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert whole(mask, queries(1, 4)) is mask
    assert whole(None, queries(1, 4)) is None


@pytest.mark.parametrize("by_name", [True, False])
def test_inside_the_mode_attention_sees_the_whole_mask(
    monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    seen: list[Any] = []

    def spy(mask: Any, query: Any) -> Any:
        seen.append(whole(mask, query))
        return seen[-1]

    monkeypatch.setattr(_masks, "whole", spy)
    q, mask = queries(2), expanded()
    expected = scaled_dot_product_attention(q, q, q, mask)
    with WholeMasks():
        if by_name:
            result = scaled_dot_product_attention(q, q, q, attn_mask=mask)
        else:
            result = scaled_dot_product_attention(q, q, q, mask)
    assert [made.stride(-1) for made in seen] == [1]
    torch.testing.assert_close(result, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16, torch.float32, torch.int64])
@pytest.mark.parametrize("numel", [1, 7, 4096, 100_000])
def test_copies_through_pinned_memory_keep_every_bit(dtype: torch.dtype, numel: int) -> None:
    from steelworks.plans._mapped import copy_to_device, copy_to_host

    size = torch.empty((), dtype=dtype).element_size()
    bits = torch.randint(0, 2 if dtype is torch.bool else 256, (numel * size,), dtype=torch.uint8)
    source = bits.view(dtype).pin_memory()
    there, back = torch.empty(numel, dtype=dtype, device="cuda"), torch.empty(numel, dtype=dtype).pin_memory()
    copy_to_device(source, there)
    copy_to_host(there, back)
    torch.cuda.synchronize()
    assert torch.equal(back.view(torch.uint8), bits)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_tensor_with_gaps_is_copied_to_the_host() -> None:
    from steelworks.plans._mapped import copy_to_host

    source = torch.arange(64, device="cuda").view(8, 8).t()
    target = torch.empty(8, 8, dtype=torch.int64).pin_memory()
    copy_to_host(source, target)
    torch.cuda.synchronize()
    assert torch.equal(target, source.cpu())
