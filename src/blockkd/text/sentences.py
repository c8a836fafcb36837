"""Sentences as tokens, in memory, and batches of them padded to one of few lengths."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int, Real
from torch import Tensor

from blockkd.data.images import LabelledImages

Tokens = dict[str, Tensor]


class Padding:
    """Makes a batch of samples, padded to the shortest allowed length that holds its longest sentence.

    Few lengths, so that ``torch.compile`` soon knows them all.

    Args:
        tokenizer: says with what and on which side.
        lengths: the allowed lengths, in ascending order.
    """

    def __init__(self, tokenizer: Any, lengths: Sequence[int]) -> None:
        self.tokenizer, self.lengths = tokenizer, tuple(lengths)

    def __call__(self, samples: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Samples ``(tokens, label, number, ...)`` → inputs ``(B, L)`` by name, labels ``(B,)``, numbers ``(B,)``."""
        tokens, *rest = zip(*samples, strict=True)
        return self.inputs(tokens), *(torch.as_tensor(column) for column in rest)

    def inputs(self, tokens: Sequence[Tokens]) -> Tokens:
        """Sentences → inputs of ``(B, L)`` by name, with an ``attention_mask`` that is 0 on padding."""
        longest = max(len(row["input_ids"]) for row in tokens)
        length = next(length for length in self.lengths if length >= longest)
        filling = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        batch = {
            name: torch.full((len(tokens), length), filling.get(name, 0)) for name in (*tokens[0], "attention_mask")
        }
        for i, row in enumerate(tokens):
            count = len(row["input_ids"])
            place = slice(length - count, length) if self.tokenizer.padding_side == "left" else slice(count)
            for name, values in row.items():
                batch[name][i, place] = values
            batch["attention_mask"][i, place] = 1
        return batch


class TokenizedSentences(LabelledImages):
    """Tokens of sentences, or of pairs, with labels; by index a mapping of ``(L,)`` and a label.

    Args:
        columns: by input name (``input_ids``, ``token_type_ids``, ...), a list of numbers for each sentence.
        labels: ``(N,)``, classes, or numbers of a regression.
        padding: makes batches of them; only ``batch`` needs it.
        made_by: what made tokens of the text, by name, for ``identity``.
    """

    logits_dtype = torch.float32  # in which a teacher's logits are recorded: there is one view, so the table is small

    def __init__(
        self,
        columns: dict[str, list[list[int]]],
        labels: Real[Tensor, " N"],
        padding: Padding | None = None,
        made_by: Mapping[str, str] | None = None,
    ) -> None:
        lengths = torch.tensor([len(row) for row in columns["input_ids"]])
        self._ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        # All in one piece: lists of lists would take ten times the memory.
        flat = {
            name: torch.tensor([n for row in rows for n in row], dtype=torch.int32) for name, rows in columns.items()
        }
        super().__init__(flat, labels)
        self.padding, self.made_by = padding, dict(made_by or {})

    def __getitem__(self, index: int) -> tuple[Tokens, Tensor]:  # type: ignore[override]
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        return {name: flat[start:end].long() for name, flat in self.images.items()}, self.labels[index]

    @property
    def longest(self) -> int:
        """How many tokens the longest sentence has."""
        return int(self._ends.diff().max())

    def batch(  # type: ignore[override]
        self, indices: Int[Tensor, " B"], views: Int[Tensor, " B"]
    ) -> tuple[Tokens, Real[Tensor, " B"]]:
        """These sentences as inputs ``(B, L)`` by name, padded, and their labels; there is one view of each, 0.

        Raises:
            ValueError: nothing is known of the padding.
        """
        del views
        if self.padding is None:
            raise ValueError("nothing says how these sentences are padded: give TokenizedSentences a padding")
        return self.padding.inputs([self[int(index)][0] for index in indices]), self.labels[indices]

    def identity(self) -> dict[str, str]:
        """A hash of all tokens, and what made them.

        Not what they are padded to: a classifier's logits hang on it by rounding only.
        """
        digest = hashlib.sha256()
        for name, flat in (*self.images.items(), ("ends", self._ends)):
            digest.update(name.encode())
            digest.update(flat.numpy())
        return {"tokens": digest.hexdigest(), **self.made_by}
