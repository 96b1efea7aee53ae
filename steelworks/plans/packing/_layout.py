"""Where the real tokens of a padded batch are, and how to move between padded and packed form."""

from __future__ import annotations

import torch


class Dense:
    """The layout of a batch without padding: nothing moves. Same interface as :class:`Layout`."""

    lengths: None = None

    def pack(self, values: torch.Tensor) -> torch.Tensor | None:
        """Return ``values`` as they are."""
        return values

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` as they are."""
        return values


class Layout:
    """The real tokens of a mask [rows, columns]. Computed once a call, used by every gather and scatter.

    Attributes:
        rows: rows of the padded batch.
        columns: columns of the padded batch.
        lengths: the number of real tokens of each row that has any.
        index: int64 [tokens], the place of each real token in the flattened batch, ascending.
        column: int64 [tokens], the column of each real token.
        prefix: whether the real tokens of every row are its first ones.
        anchored: whether every row that has a real token has one in column 0.
    """

    __slots__ = ("anchored", "column", "columns", "index", "lengths", "prefix", "rows")

    def __init__(self, mask: torch.Tensor, counts: list[int]) -> None:
        self.rows, self.columns = mask.shape
        self.lengths = [count for count in counts if count]
        self.index = mask.reshape(-1).nonzero().squeeze(1)
        self.column = self.index % self.columns
        # Distinct columns of a row have the least sum exactly when they are 0, 1, 2, ...
        least = sum(count * (count - 1) // 2 for count in self.lengths)
        self.prefix = int(self.column.sum()) == least
        self.anchored = self.prefix or int(torch.count_nonzero(mask[:, 0])) == len(self.lengths)

    def pack(self, values: torch.Tensor) -> torch.Tensor | None:
        """Gather the real tokens of [rows, columns] or [1, columns]; None for another shape.

        Returns:
            [1, tokens].
        """
        if values.shape == (self.rows, self.columns):
            return values.reshape(-1).index_select(0, self.index).unsqueeze(0)
        if values.shape == (1, self.columns):
            return values.reshape(-1).index_select(0, self.column).unsqueeze(0)
        return None

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """Scatter [1, tokens, ...] to [rows, columns, ...], with zeros in the padding."""
        trailing = values.shape[2:]
        out = values.new_zeros((self.rows * self.columns, *trailing))
        out.index_copy_(0, self.index, values[0])
        return out.view(self.rows, self.columns, *trailing)


def token_counts(mask: torch.Tensor) -> list[int]:
    """The number of real tokens in each row of ``mask`` [rows, columns]; any non-zero value counts."""
    counts: list[int] = torch.count_nonzero(mask, dim=1).tolist()
    return counts
