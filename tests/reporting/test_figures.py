"""A report's folder: a newer report removes what an older one wrote, and nothing that no report wrote."""

import hashlib
import json
from pathlib import Path

import pytest

from blockkd import durable
from blockkd.reporting import figures
from blockkd.reporting.figures import LIST, PAGE, is_free, write_report

OLD = {"loss.png": b"old", "loss.svg": b"old", "map-kd.png": b"old", "map-kd.svg": b"old"}
NEW = {"loss.png": b"new", "loss.svg": b"new", "map-pkd.png": b"new"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_figures_of_an_older_report_go_and_those_of_somebody_else_stay(tmp_path: Path) -> None:
    write_report(tmp_path, "old", OLD)
    for name in ("mine.png", "map-mine.svg", "notes.txt"):
        (tmp_path / name).write_bytes(b"mine")
    write_report(tmp_path, "new", NEW)
    assert names(tmp_path) == {*NEW, PAGE, LIST, "mine.png", "map-mine.svg", "notes.txt"}
    assert (tmp_path / "loss.png").read_bytes() == b"new"
    assert (tmp_path / PAGE).read_text() == "new"
    assert set(json.loads((tmp_path / LIST).read_text())["figures"]) == NEW.keys()


def test_a_file_in_the_place_of_a_figure_stays(tmp_path: Path) -> None:
    write_report(tmp_path, "old", OLD)
    (tmp_path / "map-kd.png").write_bytes(b"mine")
    write_report(tmp_path, "new", NEW)
    assert names(tmp_path) == {*NEW, PAGE, LIST, "map-kd.png"}
    assert (tmp_path / "map-kd.png").read_bytes() == b"mine"


def test_a_report_without_a_list_loses_nothing(tmp_path: Path) -> None:
    write_report(tmp_path, "old", OLD)
    (tmp_path / LIST).unlink()
    write_report(tmp_path, "new", NEW)
    assert names(tmp_path) == {*OLD, *NEW, PAGE, LIST}


MINE = hashlib.sha256(b"mine").hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        *("[", "{}", "[1]", '{"figures": 3}', '{"figures": [7]}', '{"figures": ["loss.png"]}'),
        json.dumps({"figures": dict.fromkeys(("../outside.png", "/etc/x.png", "notes.txt"), MINE)}),
    ],
)
def test_a_list_that_no_report_wrote_removes_nothing(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(folder, "old", OLD)
    (folder / LIST).write_text(content)
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "outside.png").write_text("mine")
    write_report(folder, "new", NEW)
    assert names(folder) == {*OLD, *NEW, PAGE, LIST, "notes.txt"}
    assert (tmp_path / "outside.png").read_text() == "mine"


def test_what_was_cut_short_is_known_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, "old", OLD)
    write = durable.write_durably

    def full(path: Path, *parts: bytes, flush: bool = True) -> None:
        if path.name == PAGE:
            raise OSError(28, "No space left on device", str(path))
        write(path, *parts, flush=flush)

    monkeypatch.setattr(figures, "write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, "new", NEW)
    assert (tmp_path / PAGE).read_text() == "old"
    assert names(tmp_path) >= {*OLD, *NEW}, "the old page still finds its figures"
    monkeypatch.setattr(figures, "write_durably", write)
    write_report(tmp_path, "last", {"loss.png": b"last"})
    assert names(tmp_path) == {"loss.png", PAGE, LIST}


def test_where_a_report_may_lie(tmp_path: Path) -> None:
    assert is_free(tmp_path / "new")
    assert is_free(tmp_path)
    for name in (LIST, "loss.png", "loss.svg"):
        (tmp_path / name).write_text("")
    assert is_free(tmp_path), "one that was cut short"
    (tmp_path / "notes.txt").write_text("")
    assert not is_free(tmp_path)
    (tmp_path / PAGE).write_text("")
    assert is_free(tmp_path)
