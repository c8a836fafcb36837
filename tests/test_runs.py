"""The run folder: who may write where, and what survives."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockkd.runs import Job, RunFolder, RunFolderError, read_csv, write_csv


def test_a_new_run_needs_a_free_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.check_free(overwrite=False)
    assert not folder.path.parent.exists()  # checking writes nothing
    folder.create("epochs: 1\n")
    with pytest.raises(RunFolderError, match=r"already holds a run.*--resume.*--overwrite.*--output"):
        folder.check_free(overwrite=False)


def test_overwrite_removes_what_the_old_run_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("epochs: 1\n")
    folder.finish(Job("kd", 0), {"method": "kd"})
    folder.create("epochs: 2\n", overwrite=True)
    assert folder.result(Job("kd", 0)) is None
    assert (folder.path / "recipe.yaml").read_text() == "epochs: 2\n"


def test_overwrite_never_deletes_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder(tmp_path).create("epochs: 1\n", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    RunFolder(tmp_path).create("epochs: 1\n")
    assert (tmp_path / "recipe.yaml").is_file()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder(tmp_path / "file").check_free(overwrite=True)
    with pytest.raises(RunFolderError, match="cannot write to"):
        RunFolder(tmp_path / "file" / "run").check_free(overwrite=False)


def test_open_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder.open(tmp_path)


def test_tables_are_put_together_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create("")
    jobs = [Job("kd", 0), Job("kd", 1), Job("ce", 0)]
    for job in reversed(jobs):
        folder.write_metrics(job, [{"method": job.method, "seed": job.seed, "epoch": 0, job.method: 0.5}])
    folder.finish(jobs[1], {"method": "kd", "seed": 1, "test_accuracy": 0.25})
    folder.gather(jobs)
    folder.gather(jobs)  # doubles nothing
    metrics = read_csv(folder.path / "metrics.csv")
    assert [(row["method"], row["seed"]) for row in metrics] == [("kd", 0), ("kd", 1), ("ce", 0)]
    assert "kd" not in metrics[2]
    assert read_csv(folder.path / "results.csv") == [{"method": "kd", "seed": 1, "test_accuracy": 0.25}]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden"])
def test_a_method_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFolderError, match="cannot name a folder"):
        RunFolder(tmp_path).job_folder(Job(name, 0))


cells = st.one_of(st.integers(), st.floats(allow_nan=False), st.text("abc,\"'\n ", min_size=1))


@settings(deadline=None)  # each case waits for the disk
@given(rows=st.lists(st.dictionaries(st.sampled_from(["one", "two", "three"]), cells, min_size=1)))
def test_csv_round_trip(rows: list[dict[str, str | int | float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    write_csv(path, rows)
    assert read_csv(path) == rows
