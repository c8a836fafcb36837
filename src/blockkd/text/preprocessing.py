"""What is done to sentences before a network sees them: part of a network as soon as somebody else uses it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from blockkd.calling import Inputs, arguments
from blockkd.text.sentences import Padding, Tokens

FOLDER = "tokenizer"


@dataclass(frozen=True)
class TextPreprocessing:
    """Sentences, or pairs of them → what the network takes: tokens as named tensors.

    Attributes:
        tokenizer: makes tokens of text.
        columns: what the sentences are called in the data: one name, or two where pairs are compared.
        max_length: sentences are cut at so many tokens.
        inputs: the names of the tensors that the network takes.
        labels: what the classes are called, by number; empty for a regression.
    """

    tokenizer: Any = field(compare=False, repr=False)
    columns: tuple[str, ...]
    max_length: int
    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def __call__(self, *sentences: Sequence[str]) -> dict[str, Int[Tensor, "B L"]]:
        """Sentences → tensors ``(B, L)`` by name, padded to the longest of them: ``network(**preprocessing([...]))``.

        Args:
            sentences: a list for each of ``columns``, equally long.

        Raises:
            ValueError: another number of lists than of columns.
        """
        if len(sentences) != len(self.columns):
            raise ValueError(
                f"{len(sentences)} lists of sentences are given, expected {len(self.columns)}: "
                f"{' and '.join(self.columns)}"
            )
        options = {"padding": True, "truncation": True, "max_length": self.max_length, "return_tensors": "pt"}
        made = self.tokenizer(*map(list, sentences), **options)
        return {name: made[name] for name in self.inputs}

    def batch(self, tokens: Sequence[Tokens]) -> Tokens:
        """Sentences that are tokens already, as tensors ``(B, max_length)`` by name: padded as far as goes."""
        made = Padding(self.tokenizer, [self.max_length]).inputs(tokens)
        return {name: made[name] for name in self.inputs}

    def only_for(self, network: nn.Module, inputs: Inputs) -> "TextPreprocessing":
        """The same for a network that takes of these inputs only some, as DistilBERT does of BERT's.

        Its tokenizer gives no others then, so that ``network(**tokenizer(...))`` can be said.
        """
        assert not isinstance(inputs, Tensor)
        named = arguments(network, inputs, {})
        taken = tuple(name for name in inputs if name in named)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_input_names, tokenizer.model_max_length = list(taken), self.max_length
        return replace(self, tokenizer=tokenizer, inputs=taken)

    def as_dict(self) -> dict[str, Any]:
        """All of it but the tokenizer by name, for JSON."""
        return {
            "columns": list(self.columns),
            "max_length": self.max_length,
            "inputs": list(self.inputs),
            "labels": list(self.labels),
            "tokenizer": FOLDER,
            "padding": {"token": self.tokenizer.pad_token_id, "side": self.tokenizer.padding_side},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], tokenizer: Any) -> "TextPreprocessing":
        """What ``as_dict`` gave, perhaps by way of JSON, with the tokenizer that was kept beside it."""
        return cls(
            tokenizer=tokenizer,
            columns=tuple(map(str, content["columns"])),
            max_length=int(content["max_length"]),
            inputs=tuple(map(str, content["inputs"])),
            labels=tuple(map(str, content["labels"])),
        )


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, with nothing of the hub.

    Raises:
        OSError: there is none.
        ValueError: it cannot be used.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
