"""GLUE from the hub or from a folder, as a LightningDataModule."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Real
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from blockkd.data.images import ImageData, LabelledImages, Parts
from blockkd.data.reading import read_files, read_splits
from blockkd.data.splitting import hold_out
from blockkd.text.fitting_together import check_labels, check_length, check_vocabulary
from blockkd.text.preprocessing import TextPreprocessing
from blockkd.text.sentences import Padding, TokenizedSentences, Tokens
from blockkd.text.tasks import task_named
from blockkd.text.vocabulary import tokenizer_identity


class Glue(ImageData):
    """One task of GLUE.

    The test part is the split that the field reports (the labels of GLUE's own test split are not public), so nothing
    may be chosen on it; ``val_share`` holds a part of the training split out for that. Batches are ``(inputs, labels,
    indices)`` for training and ``(inputs, labels)`` for evaluation, inputs being named tensors ``(B, L)``.

    Args:
        task: cola, sst2, mrpc, stsb, qqp, mnli, mnli-mm (mismatched), qnli or rte.
        tokenizer: the folder or the hub's name of the teacher, whose tokenizer reads the sentences; or a tokenizer. In
            a recipe that of the teacher's network when left out.
        path: ``nyu-mll/glue`` on the hub, or a folder that holds one for each task, ``sst2/train.parquet`` and
            ``sst2/validation.parquet`` among them.
        revision: branch, tag or commit of the data on the hub; None is its newest.
        max_length: sentences are cut at so many tokens.
        n_lengths: to how many different lengths batches are padded: ``max_length`` and its parts. Few, so that compiled
            code is soon there for all.
        val_share: share of the training split that is held out for validation; 0 trains on everything.
        split_seed: which sentences are held out; independent of the run's seed.
        batch_size: sentences per training step; the last, smaller batch of an epoch is dropped.
        eval_batch_size: sentences per step of validation and test.
        num_workers: processes that load data; 0 loads in the main process.

    Raises:
        ValueError: a setting is out of its range; later, on first use, what is wrong with the data.
    """

    sample = "sentence"

    def __init__(
        self,
        task: str,
        tokenizer: str | Any = None,
        path: str = "nyu-mll/glue",
        revision: str | None = None,
        max_length: int = 128,
        n_lengths: int = 4,
        val_share: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 32,
        eval_batch_size: int = 128,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.task = task_named(task)
        if not 1 <= n_lengths <= max_length:
            raise ValueError(f"n_lengths is {n_lengths}, expected 1 … max_length, which is {max_length}")
        if not 0 <= val_share < 1:
            raise ValueError(f"val_share is {val_share}, expected a share of the training split: 0 … less than 1")
        self.task_name, self.path, self.revision = task, path, revision
        self.max_length, self.n_lengths = max_length, n_lengths
        self.val_share, self.split_seed = val_share, split_seed
        self._named: str | None = tokenizer if isinstance(tokenizer, str) else None
        self._tokenizer: Any = None if isinstance(tokenizer, str) else tokenizer
        self._tokenizer_revision: str | None = None
        self._test_texts: Any = None

    @property
    def num_classes(self) -> int:
        """How many outputs a network needs: one for each class, or one for a regression."""
        return self.task.outputs

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, by number; none for a regression."""
        return list(self.task.labels)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """GLUE's own for this task; the first is the one that it is known by."""
        return self.task.metrics

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use. Raises ValueError when there is none."""
        if self._tokenizer is None:
            if self._named is None:
                raise ValueError(
                    "nothing says how sentences become tokens: set tokenizer to the teacher's folder or name"
                )
            self._tokenizer = load_tokenizer(self._named, self._tokenizer_revision)
        return self._tokenizer

    def read_as(self, name: str, revision: str | None = None) -> None:
        """Take this network's tokenizer, unless one was given.

        Args:
            name: of the network, a folder or a name on the hub.
            revision: branch, tag or commit on the hub; None is its newest.
        """
        if self._named is None and self._tokenizer is None:
            self._named, self._tokenizer_revision = name, revision

    def load(self) -> Parts:
        """Read and tokenize, and hold the validation part out."""
        splits = _read(self.path, self.task.subset, self.revision)
        names = "train", self.task.evaluation
        for name in names:
            if name not in splits:
                raise ValueError(f"{self.path!r} has no split {name!r} of {self.task_name}, only {sorted(splits)}")
        self._test_texts = splits[self.task.evaluation]
        whole, test = (self._tokenized(splits[name], name) for name in names)
        rest, held_out = self._held_out(whole[1])
        return Parts(
            self._chosen(*whole, rest), self._chosen(*whole, held_out), self._chosen(*test, list(range(len(test[1]))))
        )

    def example(self, size: int = 2) -> Tokens:  # type: ignore[override]
        """The first ``size`` sentences of the test part, as a batch."""
        test = self.parts.test
        return self._padding().inputs([test[i][0] for i in range(min(size, len(test)))])  # type: ignore[misc]

    def some(self, part: LabelledImages, indices: Sequence[int]) -> tuple[Tokens, Real[Tensor, " B"]]:
        """These sentences of a part as a batch, and their labels ``(B,)``."""
        items: Any = [part[index] for index in indices]
        return self._padding().inputs([tokens for tokens, _ in items]), torch.stack([label for _, label in items])

    def trial_batch(self) -> tuple[Tokens, Real[Tensor, " B"]]:
        """A batch as in training, of sentences from all over it."""
        train = self.parts.train
        return self.some(train, [i * len(train) // self.batch_size for i in range(self.batch_size)])

    def check_networks(self, *networks: nn.Module) -> None:
        """Compare networks, the teacher first, with the tokenizer, the length of batches, and each other.

        Raises:
            MismatchError: the tokenizer is not theirs, batches are longer than they have positions for, or they number
                their labels differently.
        """
        check_vocabulary(self.tokenizer, *networks)
        check_length(self.max_length, *networks)
        check_labels(networks[0], networks[-1])

    def preprocessing(self) -> TextPreprocessing:  # type: ignore[override]
        """How sentences become what the networks take. Goes into exports."""
        names = tuple(self.example(1))
        return TextPreprocessing(self.tokenizer, self.task.columns, self.max_length, names, self.task.labels)

    def test_sentences(self, index: int) -> list[str]:
        """The sentence at an index of the test part, or the two, as they were written. Raises IndexError."""
        if not 0 <= index < len(self.parts.test):  # which loads them
            raise IndexError(f"there is no sentence {index}, only 0 … {len(self.parts.test) - 1}")
        row = self._test_texts[index]
        return [row[column] or "" for column in self.task.columns]

    def _loader(self, images: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return super()._loader(images, collate_fn=self._padding(), **options)

    def _padding(self) -> Padding:
        lengths = [-(-self.max_length * i // self.n_lengths) for i in range(1, self.n_lengths + 1)]
        return Padding(self.tokenizer, lengths)

    def _chosen(
        self, columns: dict[str, list[list[int]]], labels: Real[Tensor, " N"], chosen: list[int]
    ) -> TokenizedSentences:
        made_by = {"tokenizer": tokenizer_identity(self.tokenizer), "max_length": str(self.max_length)}
        some = {name: [rows[i] for i in chosen] for name, rows in columns.items()}
        return TokenizedSentences(some, labels[chosen], self._padding(), made_by)

    def _held_out(self, labels: Real[Tensor, " N"]) -> tuple[list[int], list[int]]:
        # The numbers of a regression are told apart as roughly as classes are, so that all sizes are in both parts.
        return hold_out(labels.round().long(), self.val_share, self.split_seed)

    def _tokenized(self, split: Any, name: str) -> tuple[dict[str, list[list[int]]], Real[Tensor, " N"]]:
        missing = [column for column in (*self.task.columns, "label") if column not in split.column_names]
        if missing:
            raise ValueError(
                f"the {name} split of {self.task_name} in {self.path!r} has no column {missing[0]!r}, only "
                f"{split.column_names}"
            )
        texts = [list(split[column]) for column in self.task.columns]
        for column, rows in zip(self.task.columns, texts, strict=True):
            empty = [i for i, row in enumerate(rows) if not (row or "").strip()]
            if len(empty) == len(rows):
                raise ValueError(f"the column {column!r} of the {name} split of {self.task_name} holds no text")
            rows[:] = [row or "" for row in rows]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length, return_attention_mask=False)
        kind = torch.int64 if self.task.labels else torch.float32
        return dict(encoded), torch.tensor(list(split["label"])).to(kind)


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """A tokenizer from a folder or from the hub, there at a branch, tag or commit.

    Raises:
        ValueError: there is none, or it does not pad.
        ModuleNotFoundError: the library ``transformers`` is missing.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("text is read by the library transformers: pip install 'blockkd[text]'") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(Path(name).expanduser()), revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"there is no tokenizer in {name!r}, neither as a folder with its files nor on the hub: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"the tokenizer in {name!r} has no padding token: give it one (pad_token in its configuration)"
        )
    return tokenizer


def _read(path: str, subset: str, revision: str | None) -> Any:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        try:
            return read_splits(path, subset, revision)
        except ValueError as error:
            reason = str(error).partition(" (expected")[0].rstrip(".")
            raise ValueError(
                f"{reason}; {path!r} is no folder either: give one with {subset}/train.parquet in it, as path"
            ) from error
    if not (folder / subset).is_dir():
        raise ValueError(f"{path!r} has no folder {subset!r}, only {sorted(p.name for p in folder.iterdir())}")
    # Split by split: left to itself, datasets takes validation_matched for a part of validation.
    files: dict[str, list[str]] = {}
    for file in sorted((folder / subset).glob("*.parquet")):
        files.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(str(file))
    if not files:
        raise ValueError(f"{str(folder / subset)!r} holds no parquet files")
    return read_files(files)
