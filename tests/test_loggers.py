"""What can be watched while a job trains: TensorBoard's files always, services where they are asked for."""

import errno
import io
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from blockkd.cli import main
from blockkd.commands import loggers
from blockkd.commands.event_file import EventFile
from blockkd.runs import read_csv
from tests.test_cli import SMALL

SHORT: dict[str, Any] = SMALL | {"method": {"class_path": "blockkd.KD"}, "beside": {}, "epochs": 2}


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = SMALL["teacher"] | {"epochs": 1}
    Path("short.yaml").write_text(yaml.safe_dump(SHORT | {"teacher": teacher}))


def events(folder: Path) -> dict[str, list[float]]:
    """The values by name, read record by record: length, its checksum, an event, its checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    found: dict[str, list[float]] = {}
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        assert struct.unpack_from("<I", content, at + 8) == (masked_crc32c(content[at : at + 8]),)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(value.simple_value)
        at += 16 + length
    return found


def test_tensorboard_shows_what_the_csv_file_holds() -> None:
    assert main(["distill", "--config", "short.yaml", "--output", "run"]) == 0
    rows = read_csv(Path("run/kd/seed_0/metrics.csv"))
    seen = events(Path("run/kd/seed_0/tensorboard"))
    assert {"val/accuracy", "val/loss", "train/loss", "train/task/student", "epoch"} <= seen.keys()
    for name in ("val/accuracy", "val/loss", "train/loss"):
        assert seen[name] == pytest.approx([float(row[name]) for row in rows])
    assert len(events(Path("run/teacher/seed_0/tensorboard"))["val/accuracy"]) == 1


def test_tensorboard_itself_reads_the_file(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    file = EventFile(tmp_path / "events")
    for step, loss in ((4, 0.5), (8, 0.25)):
        file.log_metrics({"val/loss": loss, "epoch": step / 4}, step)
    seen = accumulator.EventAccumulator(str(tmp_path / "events"))
    seen.Reload()
    assert [(one.step, one.value) for one in seen.Scalars("val/loss")] == [(4, 0.5), (8, 0.25)]


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, in the process that trains: a training that waits for a writer that is gone would never end."""

    class Full(io.BytesIO):
        def write(self, content: object) -> int:
            del content
            raise OSError(errno.ENOSPC, "No space left on device")

    file = EventFile(tmp_path / "events")
    monkeypatch.setattr(Path, "open", lambda *_, **__: Full())
    with pytest.raises(OSError, match="No space left on device") as caught:
        file.log_metrics({"val/loss": 0.5}, 1)
    assert caught.value.filename == str(file.path)


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_said_before_anything_is_written(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    assert main(["distill", "--config", "short.yaml", "--output", "run", "--logger", service]) == 2
    assert f"logger is {service}, whose package is not installed: pip install {service}" in capsys.readouterr().err
    assert not Path("run").exists()


def test_weights_and_biases_gets_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["distill", "--config", "short.yaml", "--output", "run", "--logger", "wandb"]) == 0
    (stored,) = Path("run/kd/seed_0/wandb").glob("offline-run-*/run-*.wandb")
    assert b"val/accuracy" in stored.read_bytes()


def test_mlflow_gets_the_metrics_of_every_job(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="mlflow keeps runs in a database by sqlalchemy, which is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["distill", "--config", "short.yaml", "--output", "run", "--logger", "mlflow"]) == 0
    with closing(sqlite3.connect("run/mlflow.db")) as database:
        names = dict(database.execute("select run_uuid, name from runs"))
        logged = database.execute("select run_uuid from metrics where key = 'val/accuracy'").fetchall()
    assert "run: kd, seed 0" in names.values()
    assert {names[run] for (run,) in logged} == set(names.values())


def test_a_service_that_cannot_be_reached_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    assert main(["distill", "--config", "short.yaml", "--output", "run", "--logger", "mlflow"]) == 2
    assert "cannot log to mlflow: " in capsys.readouterr().err
