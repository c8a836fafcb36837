"""The tables of ``docs/evidence.md``, from the raw rows in ``benchmarks/results/``.

    python benchmarks/evidence.py               # writes them into the document, between its marks
    python benchmarks/evidence.py --check       # exits with 1 where the document says anything else

A difference is paired by seed; beside it stands its 95 % interval, Student's t. "better" and "worse" are said where
that interval leaves out 0, "same" where it does not.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy import stats

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "evidence.md"
UNTUNED = RESULTS / "cifar100_small_resnet56-resnet8" / "results.csv"
MARK = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
CONFIDENCE = 0.95
PAPER = "paper"
SIMPLE = {"kd": "to KD, paired", "kd_standardized": "to standardized KD, paired"}  # what methods are compared with
CHANGES = (  # what is changed, the method that has it, the one that has not
    ("standardized logits", "kd_standardized", "kd"),
    ("standardized logits", "block_kd_standardized", "block_kd"),
    ("standardized logits", "block_kd_light_standardized", "block_kd_light"),
    ("standardized logits, τ by the number of classes", "kd_standardized_by_classes", "kd"),
    ("standardized logits, τ by the number of classes", "block_kd_standardized_by_classes", "block_kd"),
    ("τ by the number of classes", "kd_standardized_by_classes", "kd_standardized"),
    ("τ by the number of classes", "block_kd_standardized_by_classes", "block_kd_standardized"),
    ("all stones", "block_kd", "kd"),
    ("all stones", "block_kd_standardized", "kd_standardized"),
    ("the last stone", "block_kd_light", "kd"),
    ("the last stone", "block_kd_light_standardized", "kd_standardized"),
    ("N_1 and N_2 beside the last stone", "block_kd_standardized", "block_kd_light_standardized"),
    ("N_2 beside the last stone", "block_kd_2_3_standardized", "block_kd_light_standardized"),
    ("N_1 beside the others", "block_kd_standardized", "block_kd_2_3_standardized"),
    ("linear classifiers for the teacher's tails", "deep_supervision_standardized", "block_kd_standardized"),
    ("tails drawn anew for the teacher's", "tails_drawn_anew_standardized", "block_kd_standardized"),
    ("linear classifiers after all blocks", "deep_supervision_standardized", "kd_standardized"),
    ("the paper's form instead of KD on standardized logits", "block_kd", "kd_standardized"),
    ("Block-KD instead of ReviewKD", "block_kd_standardized", "review_kd"),
    ("Block-KD instead of FCFD", "block_kd_standardized", "fcfd"),
)
FEWEST = 3  # seeds, below which no interval is told
OURS, THEIRS = "block_kd_standardized", "kd_standardized"  # what the document is about, in short
STUDENTS = {"cifar100_5000": "ResNet-8", "cifar100_5000_long": "ResNet-8", "cifar100_5000_resnet20": "ResNet-20"}
EQUAL = {
    "epochs": "epochs",
    "live": "operations, the teacher in every step",
    "compute": "operations, the teacher recorded",
}

Row = dict[str, str]


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences, and the ends of its 95 % interval by Student's t.

    Args:
        differences: at least two, one a seed.
    """
    centre, error = mean(differences), stdev(differences) / len(differences) ** 0.5
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * error
    return centre, centre - width, centre + width


def verdict(differences: Sequence[float]) -> str:
    """In one word."""
    if len(differences) < FEWEST:
        return "open"
    _, low, high = interval(differences)
    return "better" if low > 0 else "worse" if high < 0 else "same"


def difference(differences: Sequence[float]) -> str:
    """As a table says it."""
    if len(differences) < FEWEST:
        return ", ".join(f"{d:+.2f}" for d in differences) or "–"
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*interval(differences))


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{mean(values):.2f}"


def fight(rows: Sequence[Row], part: str) -> str:
    """The comparison at equal epochs or at equal compute, the best first."""
    scores = scores_of(rows, part)
    usual = ["method", "learning rate", "weight", "epochs", "GFLOPs an image", "test accuracy", "n"]
    head = [*usual, *SIMPLE.values()]
    lines = []
    for method in sorted(scores, key=lambda m: -mean(scores[m].values())):
        row, own = row_of(rows, part, method), scores[method]
        rate, weight = (f"{float(row[name]):.2g}" if row[name] else "–" for name in ("rate", "weight"))
        cells = [method, rate, weight, row["epochs"], f"{cost_of(row):.3g}", spread(list(own.values())), str(len(own))]
        for simple in SIMPLE:
            other = scores.get(simple, {})
            apart = [] if method == simple else [own[seed] - other[seed] for seed in own if seed in other]
            cells.append(difference(apart))
        lines.append(cells)
    return _table(head, lines)


def scores_of(rows: Sequence[Row], part: str) -> dict[str, dict[str, float]]:
    """By method its test accuracy by seed, under the setting that the trials chose."""
    found = {method: _scores(rows, part, method) for method in _ordered(row["method"] for row in rows)}
    return {method: scores for method, scores in found.items() if scores}


def row_of(rows: Sequence[Row], part: str, method: str) -> Row:
    """A row of a method under the setting that the trials chose."""
    return next(r for r in rows if r["part"] == part and r["method"] == method and _setting(r) == _best(rows, method))


def cost_of(row: Row) -> float:
    """GFLOPs that were spent on each training image in all epochs."""
    return float(row["mflops_per_image"]) * int(row["epochs"]) / 1000


def trials(rows: Sequence[Row]) -> str:
    """What the search saw: how far apart the settings of each method are."""
    head = ["method", "trials", "held-out accuracy of the worst", "of the first", "of the best"]
    lines = []
    for method in _ordered(row["method"] for row in rows):
        found = [row for row in rows if (row["part"], row["method"]) == ("trial", method)]
        by_trial = [
            [float(r["held_out"]) for r in found if r["trial"] == t] for t in _ordered(r["trial"] for r in found)
        ]
        means = [mean(values) for values in by_trial]
        lines.append([method, str(len(means)), *(f"{value:.2f}" for value in (min(means), means[0], max(means)))])
    return _table(head, lines)


def levers(rows: Sequence[Row]) -> str:
    """Each form against the one that it changes."""
    head = [
        "form",
        "against",
        "learning rate",
        "GFLOPs an image",
        "held-out accuracy",
        "n",
        "difference, paired",
        "predicted",
        "found",
    ]
    scores = {lever: _finals(rows, lever) for lever in _ordered(row["lever"] for row in rows)}
    lines = []
    for lever, own in scores.items():
        finals = [row for row in rows if (row["part"], row["lever"]) == ("final", lever)]
        if not finals:
            continue
        row, other = finals[0], scores.get(finals[0]["like"], {})
        apart = [] if lever == PAPER else [own[seed] - other[seed] for seed in own if seed in other]
        cells = [lever, row["like"], f"{float(row['rate']):.2g}", f"{cost_of(row):.3g}"]
        judged = ["–", "–"] if lever == PAPER else [row["predicted"], verdict(apart)]
        lines.append([*cells, spread(list(own.values())), str(len(own)), difference(apart), *judged])
    return _table(head, lines)


def changes(rows: Sequence[Row]) -> str:
    """What one change does, or one method instead of another, at equal epochs, each at its own best setting."""
    scores, lines = scores_of(rows, "epochs"), []
    for change, method, other in CHANGES:
        both = [seed for seed in scores.get(method, {}) if seed in scores.get(other, {})]
        apart = [scores[method][seed] - scores[other][seed] for seed in both]
        if apart:
            lines.append([change, method, other, str(len(both)), difference(apart), verdict(apart)])
    return _table(["change", "method", "against", "n", "difference, paired", "found"], lines)


def heads(rows: Sequence[Row]) -> str:
    """The light form's accuracy by the classifier that is asked, and differences to the student's own."""
    names = _ordered(row["head"] for row in rows)
    lines = []
    for form in _ordered(row["lever"] for row in rows):
        scores = {
            name: {row["seed"]: float(row["held_out"]) for row in rows if (row["lever"], row["head"]) == (form, name)}
            for name in names
        }
        own = scores[names[0]]
        for name in names:
            apart = [] if name == names[0] else [scores[name][seed] - own[seed] for seed in own]
            lines.append([form, name, spread(list(scores[name].values())), str(len(own)), difference(apart)])
    return _table(["form", "classifier", "held-out accuracy", "n", "to the student's own, paired"], lines)


def norms(rows: Sequence[Row]) -> str:
    """Gradients in the student by learner, and what each learner knows, at the start and at the end."""
    head = ["form", "learner", "gradient at the start", "at the end", "accuracy at the start", "at the end", "n"]
    lines = []
    for form in _ordered(row["lever"] for row in rows):
        for learner in _ordered(row["learner"] for row in rows):
            found = [row for row in rows if (row["lever"], row["learner"]) == (form, learner)]
            cells = [
                f"{mean(float(row[name]) for row in found if row['when'] == when):.3g}"
                for name in ("gradient_norm", "held_out")
                for when in ("start", "end")
            ]
            lines.append([form, learner, *cells, str(len({row["seed"] for row in found}))])
    return _table(head, lines)


def untuned(rows: Sequence[Row]) -> str:
    """A comparison by ``blockkd compare``, every method at the field's setting, the best first."""
    head = ["method", "test accuracy", "n", "FLOPs of a step, × KD", "to KD, paired"]
    methods = [method for method in _ordered(row["method"] for row in rows) if method != "teacher"]
    scores = {m: {r["seed"]: 100 * float(r["test_accuracy"]) for r in rows if r["method"] == m} for m in methods}
    cost = {row["method"]: float(row["step_flops"]) for row in rows if row["step_flops"]}
    lines = []
    for method in sorted(methods, key=lambda m: -mean(scores[m].values())):
        own = scores[method]
        apart = [] if method == "kd" else [own[seed] - scores["kd"][seed] for seed in own]
        times_kd = f"{cost[method] / cost['kd']:.2f}"
        cells = [method, spread(list(own.values())), str(len(own)), times_kd, difference(apart)]
        lines.append(cells)
    return _table(head, lines)


def summary() -> str:
    """Full Block-KD beside KD, both on standardized logits: what they reach, by what is equal."""
    head = ["student", "equal", "epochs", "Block-KD", "epochs of KD", "KD", "n", "difference, paired"]
    lines = []
    for rung, student in STUDENTS.items():
        rows = rows_in(RESULTS / f"fair_fight_{rung}.csv")
        for part, equal in EQUAL.items():
            scores = scores_of(rows, part)
            if OURS not in scores or THEIRS not in scores:
                continue
            ours, theirs = scores[OURS], scores[THEIRS]
            both = [seed for seed in ours if seed in theirs]
            cells = [
                (row_of(rows, part, method)["epochs"], spread([own[seed] for seed in both]))
                for method, own in ((OURS, ours), (THEIRS, theirs))
            ]
            apart = difference([ours[seed] - theirs[seed] for seed in both])
            lines.append([student, equal, *cells[0], *cells[1], str(len(both)), apart])
    return _table(head, lines)


def tables() -> dict[str, str]:
    """Every table that there are rows for, by its name."""
    found = {"untuned cifar100 small": untuned(rows_in(UNTUNED)), "summary": summary()}
    for path in sorted(RESULTS.glob("fair_fight_*.csv")):
        rows, rung = rows_in(path), path.stem.removeprefix("fair_fight_")
        if any(row["part"] == "trial" for row in rows):
            found[f"trials {rung}"] = trials(rows)
        for part in ("epochs", "compute", "live"):
            if any(row["part"] == part for row in rows):
                found[f"{part} {rung}"] = fight(rows, part)
        if any((row["method"], row["part"]) == ("block_kd_standardized", "epochs") for row in rows):
            found[f"changes {rung}"] = changes(rows)
    for name, table in {"levers": levers, "gradient_norms": norms, "heads": heads}.items():
        for path in sorted(RESULTS.glob(f"{name}_*.csv")):
            found[f"{name} {path.stem.removeprefix(f'{name}_')}"] = table(rows_in(path))
    return found


def filled(text: str, found: dict[str, str]) -> str:
    """The document with its tables.

    Raises:
        KeyError: it asks for a table that there is not.
    """
    return MARK.sub(lambda match: match[1] + found[match[2]] + "\n" + match[3], text)


def _scores(rows: Sequence[Row], part: str, method: str) -> dict[str, float]:
    """Test accuracy by seed, under the setting that the trials chose."""
    found = [row for row in rows if row["part"] == part and row["method"] == method]
    chosen = [row for row in found if _setting(row) == _best(rows, method)]
    assert len({row["epochs"] for row in chosen}) <= 1, (
        f"{method} was trained for other epochs by other seeds: {chosen}"
    )
    return {row["seed"]: float(row["test"]) for row in chosen}


def _best(rows: Sequence[Row], method: str) -> tuple[str, str]:
    """The setting of the best trial, first of equals, as ``fair_fight.py`` chooses it; without trials, the only one."""
    found = [row for row in rows if (row["part"], row["method"]) == ("trial", method)]
    if not found:
        settings = {_setting(row) for row in rows if row["method"] == method}
        assert len(settings) == 1, f"{method} was run by other settings than one, and none was searched: {settings}"
        return settings.pop()

    def score(trial: str) -> float:
        return mean(float(row["held_out"]) for row in found if row["trial"] == trial)

    best = max(_ordered(row["trial"] for row in found), key=score)
    return next(_setting(row) for row in found if row["trial"] == best)


def _setting(row: Row) -> tuple[str, str]:
    return row["rate"], row["weight"]


def _finals(rows: Sequence[Row], lever: str) -> dict[str, float]:
    return {row["seed"]: float(row["held_out"]) for row in rows if (row["part"], row["lever"]) == ("final", lever)}


def _ordered(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


def rows_in(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = DOCUMENT.read_text(encoding="utf-8")
    written = filled(text, tables())
    if parser.parse_args().check:
        sys.exit(0 if written == text else f"{DOCUMENT} says other than the raw rows: run this without --check")
    DOCUMENT.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
