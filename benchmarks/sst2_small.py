"""SST-2 without pretrained weights: a small transformer, taught from scratch, is distilled to a third of its layers.

    python benchmarks/sst2_small.py --data ../shared/data/glue --seeds 5

The tokenizer is trained on the training sentences, the teacher (6 layers, width 128) on 90 % of them. Each student
copies two of its layers and is trained by each method at each of the learning rates; the rate is chosen per method on
the 10 % held out, by the mean over the seeds, and the field's development set is read at the last epoch only. Rows go
to a CSV as they come, and what is there already is not done again.
"""

import argparse
import csv
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import tokenizers
import torch
import transformers
from lightning import Trainer, seed_everything

from blockkd import KD, BlockKD, CrossEntropy, Distiller
from blockkd.objectives import KL
from blockkd.text.glue import Glue
from blockkd.text.hidden_states import PKD
from blockkd.text.students import student_of
from blockkd.text.theseus import Theseus
from blockkd.text.training import TextDistillationModule

FIELDS = ("method", "rate", "seed", "held_out", "development")
DISTANCE = KL(2.0)
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


def fit(distiller: Distiller, data: Glue, rate: float, epochs: int) -> tuple[float, float]:
    """Train, and the accuracy on the held-out part and on the development set at the last epoch."""
    module = TextDistillationModule(distiller, data.task, partial(torch.optim.AdamW, lr=rate, weight_decay=0.01))
    trainer = Trainer(
        max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False, gradient_clip_val=1.0,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
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
    data = Glue("sst2", tokenizer, options.data, max_length=64, batch_size=32)
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
    rows = _read(out)
    steps = len(data.train_dataloader()) * options.epochs
    for seed in range(options.seeds):
        for name in options.methods:
            for rate in options.rates:
                if any((row["method"], float(row["rate"]), int(row["seed"])) == (name, rate, seed) for row in rows):
                    continue
                seed_everything(seed, workers=False, verbose=False)
                data.order_seed = seed
                distiller = make(name, teacher, student_of(teacher, 2), data.example(), steps)
                held_out, development = fit(distiller, data, rate, options.epochs)
                row = dict(zip(FIELDS, (name, rate, seed, f"{held_out:.4f}", f"{development:.4f}"), strict=True))
                rows.append({key: str(value) for key, value in row.items()})
                _append(out, row)
                print(row, flush=True)
    _print_table(rows)


def _print_table(rows: list[dict[str, str]]) -> None:
    for name in dict.fromkeys(row["method"] for row in rows):
        by_rate: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if row["method"] == name:
                by_rate.setdefault(row["rate"], []).append(row)
        best = max(by_rate, key=lambda rate: statistics.mean(float(row["held_out"]) for row in by_rate[rate]))
        scores = [100 * float(row["development"]) for row in by_rate[best]]
        spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
        print(f"| {name} | {best} | {statistics.mean(scores):.2f} ± {spread:.2f} | n = {len(scores)} |")


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
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
