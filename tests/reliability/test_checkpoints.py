"""Checkpoints that are torn or have a flipped bit are known as such, and the one before is used."""

import random
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from blockkd.cli import main
from blockkd.commands.checkpoints import (
    SEAL_BYTES,
    DamagedCheckpointError,
    SealedCheckpoints,
    is_whole,
    remove_checkpoints,
    usable_checkpoint,
)
from tests.reliability.figures import Figures
from tests.reliability.runs import assert_equal_runs, begin, go_on, one_student, write_recipe

FLIPS = 500


def two_checkpoints(folder: Path) -> tuple[Path, Path]:
    """The last one holds a 2, the one before a 1."""
    sealed, last = SealedCheckpoints(), folder / "last.ckpt"
    for number in (1, 2):
        sealed.save_checkpoint({"number": number, "weights": torch.arange(1000)}, last)
    return last, folder / "previous.ckpt"


def number_in(path: Path | None) -> int:
    assert path is not None
    return int(SealedCheckpoints().load_checkpoint(path)["number"])


def test_a_checkpoint_keeps_the_one_before(tmp_path: Path) -> None:
    last, previous = two_checkpoints(tmp_path)
    assert (number_in(last), number_in(previous)) == (2, 1)
    assert sorted(tmp_path.iterdir()) == [last, previous]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usable_checkpoint(tmp_path, "job") == last
    last.unlink()  # killed between two renamings: the one before is the newest that there is
    assert usable_checkpoint(tmp_path, "job") == previous
    remove_checkpoints(tmp_path)
    assert usable_checkpoint(tmp_path, "job") is None
    assert not list(tmp_path.iterdir())


def test_every_torn_checkpoint_is_detected(tmp_path: Path, figures: Figures) -> None:
    last, _ = two_checkpoints(tmp_path)
    content = last.read_bytes()
    places = {0, 1, SEAL_BYTES - 1, SEAL_BYTES, SEAL_BYTES + 1, *range(1, len(content), 97), *range(-200, 0)}
    for place in places:
        last.write_bytes(content[:place])
        assert not is_whole(last), f"cut at {place} of {len(content)}"
        with pytest.raises(DamagedCheckpointError, match="its checksum is wrong"):
            number_in(last)
    for grown in (content + b"\0", content + content):
        last.write_bytes(grown)
        assert not is_whole(last)
    last.write_bytes(content)
    assert is_whole(last)
    figures.count("torn checkpoints detected", len(places) + 2)


def test_every_flipped_bit_is_detected(tmp_path: Path, figures: Figures) -> None:
    last, _ = two_checkpoints(tmp_path)
    content = last.read_bytes()
    draw = random.Random(0)
    seal = range(8 * (len(content) - SEAL_BYTES), 8 * len(content), 7)
    bits = [*draw.sample(range(8 * len(content)), FLIPS), *seal]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        last.write_bytes(flipped)
        assert not is_whole(last), f"bit {bit % 8} of byte {bit // 8}"
    figures.count("flipped bits detected", len(bits))


def test_a_damaged_checkpoint_never_replaces_a_good_one(tmp_path: Path) -> None:
    last, previous = two_checkpoints(tmp_path)
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"kd, seed 0: the checksum of .*last\.ckpt is wrong.* the one before"):
        assert usable_checkpoint(tmp_path, "kd, seed 0") == previous
    SealedCheckpoints().save_checkpoint({"number": 3}, last)
    assert (number_in(last), number_in(previous)) == (3, 1)


def test_without_a_whole_checkpoint_the_job_starts_anew(tmp_path: Path) -> None:
    for path in two_checkpoints(tmp_path):
        path.write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"last\.ckpt and .*previous\.ckpt is wrong.*the job starts anew"):
        assert usable_checkpoint(tmp_path, "job") is None
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_data_and_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    SealedCheckpoints().save_checkpoint({"number": Harmful()}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        number_in(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("damaged", "said"), [(1, "the job goes on from the one before"), (2, "the job starts anew")])
def test_a_run_goes_on_without_its_damaged_checkpoints(
    damaged: int, said: str, undisturbed: Path, folder: Path, steps: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write_recipe(folder, one_student("blockkd.KD"))
    steps[:] = [None] * 5 + [signal.SIGTERM]  # the end of an epoch is saved, then a step of the next
    assert main(begin("halves")) == 143
    job = folder / "halves" / "kd" / "seed_0"
    for name in ("last.ckpt", "previous.ckpt")[:damaged]:
        content = bytearray((job / name).read_bytes())
        content[len(content) // 2] ^= 1
        (job / name).write_bytes(content)
    capsys.readouterr()
    assert main(go_on(folder, "halves")) == 0
    warning = next(line for line in capsys.readouterr().err.splitlines() if "checksum" in line)
    assert warning.startswith("blockkd: warning: kd, seed 0: the checksum of halves/kd/seed_0/last.ckpt")
    assert warning.endswith(said)
    assert_equal_runs(undisturbed, folder / "halves")


def test_a_job_that_was_killed_when_it_was_finished_is_tidied_up(undisturbed: Path, folder: Path) -> None:
    write_recipe(folder, one_student("blockkd.KD"))
    with pytest.MonkeyPatch.context() as patch:

        def killed(job: Path) -> None:
            if job.parent.name == "kd":
                raise KeyboardInterrupt

        patch.setattr("blockkd.commands.jobs.remove_checkpoints", killed)
        assert main(begin("run")) == 130
    assert (folder / "run" / "kd" / "seed_0" / "last.ckpt").exists()
    assert main(go_on(folder, "run")) == 0
    assert_equal_runs(undisturbed, folder / "run")


def test_what_a_killed_process_half_wrote_is_deleted(undisturbed: Path, folder: Path, steps: list[Any]) -> None:
    write_recipe(folder, one_student("blockkd.KD"))
    steps[:] = [signal.SIGTERM]
    assert main(begin("run")) == 143
    left = [folder / "run" / "kd" / "seed_0" / ".last.ckpt.1.draft", folder / "run" / ".teacher.safetensors.1.draft"]
    for draft in left:
        draft.write_bytes(b"half")
    assert main(go_on(folder, "run")) == 0
    assert not any(draft.exists() for draft in left)
    assert_equal_runs(undisturbed, folder / "run")
