"""SST-2 without pretrained weights: a small transformer, taught from scratch, is distilled to a third of its layers.

    python benchmarks/sst2_small.py --data ../shared/data/glue --seeds 5

The tokenizer is trained on the training sentences, the teacher (6 layers, width 128) on 90 % of them. Each student
copies two of its layers. With one seed of its own each method is tried at each of the learning rates, and the one that
is best on the 10 % held out is taken for the seeds that count; of these the field's development set is read, at the
last epoch. Rows go to a CSV as they come, and what is there already is not done again.
"""

import argparse
import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
from lightning import Trainer, seed_everything

from blockkd import KD, BlockKD, CrossEntropy, Distiller
from blockkd.distances import KL
from blockkd.text.glue import Glue
from blockkd.text.hidden_states import PKD
from blockkd.text.students import student_of
from blockkd.text.theseus import Theseus
from blockkd.text.training import TextDistillationModule

FIELDS = ("method", "rate", "seed", "held_out", "development")
DISTANCE = KL(2.0)
SELECTION_SEED = 100
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
METHODS = ("fine-tuning", "KD", "PKD", "Theseus", "Block-KD", "Block-KD light")


def make(name: str, teacher: Any, student: Any, example: Any, steps: int) -> Distiller:
    """The method, for so many steps of training."""
    made: dict[str, Callable[[], Distiller]] = {
        "fine-tuning": lambda: CrossEntropy(teacher, student),
        "KD": lambda: KD(teacher, student, distance=DISTANCE),
        "PKD": lambda: PKD(teacher, student, example, alpha=0.1, logit_weight=0.9, beta=1.0, distance=DISTANCE),
        "Theseus": lambda: Theseus(teacher, student, example, steps=steps * 2 // 3),
        "Block-KD": lambda: BlockKD(teacher, student, example, distance=DISTANCE),
        "Block-KD light": lambda: BlockKD(teacher, student, example, stones="last", distance=DISTANCE),
    }
    return made[name]()


def train_tokenizer(folder: Path, size: int) -> Any:
    """Word pieces of the training sentences."""
    table = datasets.load_dataset("parquet", data_files=str(folder / "sst2" / "train.parquet"), split="train")
    inner = tokenizers.BertWordPieceTokenizer()
    inner.train_from_iterator(table["sentence"], vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    return transformers.BertTokenizerFast(tokenizer_object=inner._tokenizer, model_max_length=64)


def new_teacher(vocabulary: int) -> Any:
    """A BERT of 6 layers and width 128, with random weights."""
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def fit(distiller: Distiller, data: Glue, rate: float, epochs: int, batches: int | None = None) -> tuple[float, float]:
    """Train, and the accuracy on the held-out part and on the development set at the last epoch.

    An epoch here is ``batches`` batches of a new random order, or all of them.
    """
    module = TextDistillationModule(distiller, data.task, partial(torch.optim.AdamW, lr=rate, weight_decay=0.01))
    trainer = Trainer(
        max_epochs=epochs, limit_train_batches=batches, limit_val_batches=0, num_sanity_val_steps=0,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    parts = data.val_dataloader(), data.test_dataloader()
    held_out, development = (trainer.test(module, part, verbose=False)[0]["test/accuracy"] for part in parts)
    return held_out, development


def main() -> None:
    """Run what is missing and print the table."""
    options = _options()
    out = Path(options.out)
    tokenizer = train_tokenizer(Path(options.data), 8000)
    data = Glue("sst2", tokenizer, options.data, max_length=64, n_lengths=8, batch_size=32)
    seed_everything(0, workers=False, verbose=False)
    teacher = new_teacher(len(tokenizer))
    file = out.with_suffix(".teacher.pt")
    if file.is_file():
        teacher.load_state_dict(torch.load(file, weights_only=True))
    else:
        print("teacher: held out {:.4f}, development {:.4f}".format(
            *fit(CrossEntropy(None, teacher), data, 5e-4, options.teacher_epochs)
        ), flush=True)  # fmt: skip
        torch.save(teacher.state_dict(), file)
    study = Study(teacher, data, options.epochs, options.batches, out, _read(out))
    for name in options.methods:
        for rate in options.rates:
            study.run(name, rate, SELECTION_SEED)
    for seed in range(options.seeds):
        for name in options.methods:
            study.run(name, study.best_rate(name), seed)
    study.print_table()


@dataclass
class Study:
    """What has been run, and the means to run more.

    Attributes:
        teacher: of all students.
        data: SST-2.
        epochs: of each student, between which the rate goes down.
        batches: in an epoch.
        out: where the rows go.
        rows: those so far.
    """

    teacher: Any
    data: Glue
    epochs: int
    batches: int
    out: Path
    rows: list[dict[str, str]]

    def run(self, name: str, rate: float, seed: int) -> None:
        """Train a student, unless that was done."""
        if any((row["method"], float(row["rate"]), int(row["seed"])) == (name, rate, seed) for row in self.rows):
            return
        seed_everything(seed, workers=False, verbose=False)
        self.data.order_seed = seed
        steps = self.batches * self.epochs
        distiller = make(name, self.teacher, student_of(self.teacher, 2), self.data.example(), steps)
        held_out, development = fit(distiller, self.data, rate, self.epochs, self.batches)
        row = dict(zip(FIELDS, (name, rate, seed, f"{held_out:.4f}", f"{development:.4f}"), strict=True))
        self.rows.append({key: str(value) for key, value in row.items()})
        _append(self.out, row)
        print(row, flush=True)

    def best_rate(self, name: str) -> float:
        """The rate that was best on the held-out part, with the seed that is for choosing."""
        tried = [row for row in self.rows if (row["method"], int(row["seed"])) == (name, SELECTION_SEED)]
        return float(max(tried, key=lambda row: float(row["held_out"]))["rate"])

    def print_table(self) -> None:
        """Development accuracy of each method, and its difference to KD's, paired by seed."""
        scores = {
            name: {int(row["seed"]): 100 * float(row["development"]) for row in self._counted(name)}
            for name in dict.fromkeys(row["method"] for row in self.rows)
        }
        for name, found in scores.items():
            to_kd = [found[seed] - scores["KD"][seed] for seed in found if seed in scores.get("KD", {})]
            print(f"| {name} | {self.best_rate(name):g} | {_spread(list(found.values()))} | {_spread(to_kd)} |")

    def _counted(self, name: str) -> list[dict[str, str]]:
        best = self.best_rate(name)
        wanted = [row for row in self.rows if row["method"] == name and int(row["seed"]) != SELECTION_SEED]
        return [row for row in wanted if float(row["rate"]) == best]


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"n = {len(values)}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} (n = {len(values)})"


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with GLUE in the hub's layout")
    parser.add_argument("--out", default="sst2_small.csv", help="where the rows go")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batches", type=int, default=100, help="in an epoch of a student")
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 5e-4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
