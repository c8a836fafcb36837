"""The document on evidence says what the raw rows say, and intervals are those of Student's t."""

import random
import sys
from types import ModuleType

import pytest
from scipy import integrate, special

from tests.benchmark_scripts import script


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    return script("evidence")


def test_every_table_of_the_document_is_made_from_the_raw_rows(evidence: ModuleType) -> None:
    text = evidence.DOCUMENT.read_text(encoding="utf-8")
    found = evidence.tables()
    assert text.count("<!-- table:") == text.count("<!-- end -->") == len(evidence.MARK.findall(text))
    assert text.count("<!-- table:") > 0
    assert evidence.filled(text, found) == text, "run: python benchmarks/evidence.py"
    assert {name for _, name, _ in evidence.MARK.findall(text)} == set(found), "a table is left out of the document"


def t_density(x: float, freedom: int) -> float:
    scale = special.gamma((freedom + 1) / 2) / ((freedom * 3.141592653589793) ** 0.5 * special.gamma(freedom / 2))
    return float(scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2))


@pytest.mark.parametrize("n", [2, 3, 6, 20])
def test_an_interval_holds_95_of_100_by_the_density_of_t(evidence: ModuleType, n: int) -> None:
    draw = random.Random(n)
    values = [draw.gauss(0.3, 0.5) for _ in range(n)]
    centre, low, high = evidence.interval(values)
    assert centre == pytest.approx(sum(values) / n)
    assert centre - low == pytest.approx(high - centre)
    deviation = (sum((value - centre) ** 2 for value in values) / (n - 1)) ** 0.5
    reach = (high - centre) / (deviation / n**0.5)
    inside, _ = integrate.quad(t_density, -reach, reach, args=(n - 1,))
    assert inside == pytest.approx(0.95, abs=1e-6)


def test_a_verdict_needs_an_interval_without_zero(evidence: ModuleType) -> None:
    assert evidence.verdict([1.0, 1.1, 0.9, 1.0]) == "better"
    assert evidence.verdict([-1.0, -1.1, -0.9, -1.0]) == "worse"
    assert evidence.verdict([1.0, -1.1, 0.9, -1.0]) == "same"
    assert evidence.verdict([1.0, 1.1]) == "open"


def row(part: str, method: str, trial: str, seed: str, rate: str, held_out: str, test: str) -> dict[str, str]:
    return {
        "part": part, "method": method, "trial": trial, "seed": seed, "epochs": "30", "rate": rate, "weight": "",
        "mflops_per_image": "2", "parameters": "5", "held_out": held_out, "test": test, "versions": "torch",
    }  # fmt: skip


def test_methods_are_compared_by_the_setting_of_their_best_trial_and_by_seed(evidence: ModuleType) -> None:
    rows = [
        row("trial", m, t, "100", r, h, "")
        for m in ("kd", "other")
        for t, r, h in (("0", "0.1", "50"), ("1", "0.2", "60"))
    ]
    for seed in range(4):
        rows.append(row("epochs", "kd", "", str(seed), "0.2", "0", str(70 + seed)))
        rows.append(row("epochs", "other", "", str(seed), "0.2", "0", str(72 + seed + seed % 2 * 0.1)))
        rows.append(row("epochs", "other", "", str(seed), "0.1", "0", "99"))  # of a setting that is not the best
    for seed in range(3):
        rows.append(row("epochs", "kd_standardized", "", str(seed), "0.3", "0", str(71 + seed)))
    table = evidence.fight(rows, "epochs").splitlines()
    assert table[2].startswith("| other | 0.2 | – | 30 | 0.06 | 73.55 ± ")
    to_kd, to_standardized = table[2].strip("| ").split(" | ")[-2:]
    assert to_kd.startswith("+2.05 [")
    assert to_standardized.startswith("+1.03 [")  # on the seeds that both have
    assert {line.split(" | ")[0]: line.strip("| ").split(" | ")[-2:] for line in table[3:]} == {
        "| kd_standardized": ["+1.00 [+1.00, +1.00]", "–"],
        "| kd": ["–", "-1.00 [-1.00, -1.00]"],
    }


def test_a_change_is_judged_by_the_seeds_that_both_methods_have(evidence: ModuleType) -> None:
    rows = [row("epochs", "kd", "", str(seed), "0.1", "0", str(50 + seed)) for seed in range(5)]
    rows += [row("epochs", "kd_standardized", "", str(seed), "0.1", "0", str(60 + seed)) for seed in range(2, 5)]
    rows += [row("epochs", "block_kd_light", "", "0", "0.1", "0", "49")]
    assert evidence.changes(rows).splitlines()[2:] == [
        "| standardized logits | kd_standardized | kd | 3 | +10.00 [+10.00, +10.00] | better |",
        "| the last stone | block_kd_light | kd | 1 | -1.00 | open |",
    ]


def test_no_document_is_written_without_being_asked(evidence: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = evidence.DOCUMENT.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--check"])
    with pytest.raises(SystemExit) as stop:
        evidence.main()
    assert stop.value.code == 0
    assert evidence.DOCUMENT.read_text(encoding="utf-8") == before
