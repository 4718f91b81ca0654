"""Checkpoints come back bit for bit or are refused; folders of others are left alone."""

import dataclasses
import errno
from pathlib import Path

import pytest
import torch

from distill.config import RunConfig
from distill.optimize import create_optimizers
from distill.state import Checkpoint, RunFolder, restore_optimizers
from student import create_student
from vega_artifact import UserError, write_manifest


@pytest.fixture
def trained():
    """A student with optimisers that have taken a step."""
    student = create_student(heads={"fused": 3}, image_size=(32, 32), grid=(2, 2))
    optimizers = create_optimizers(student, RunConfig())
    student(torch.randn(2, 3, 32, 32))["fused"].square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    return student, optimizers


def checkpoint_of(trained, step):
    student, optimizers = trained
    return Checkpoint(step, 1.5, student.state_dict(), {"x": torch.ones(2)}, [o.state_dict() for o in optimizers])


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, trained):
    folder = RunFolder(tmp_path, RunConfig(), "c")
    assert folder.load() is None
    folder.save(checkpoint_of(trained, 4))
    folder.save(checkpoint_of(trained, 8))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000008"], "only the last is kept"
    loaded = folder.load()
    student, optimizers = trained
    assert (loaded.step, loaded.seconds) == (8, 1.5) and torch.equal(loaded.average["x"], torch.ones(2))
    assert all(torch.equal(loaded.student[name], value) for name, value in student.state_dict().items())
    fresh = create_optimizers(student, RunConfig())
    restore_optimizers(fresh, loaded.optimizers, tmp_path)
    for old, new in zip(optimizers, fresh):
        assert old.param_groups[0]["lr"] == new.param_groups[0]["lr"]
        states = zip(old.state.values(), new.state.values(), strict=True)
        assert all(torch.equal(a[key], b[key]) for a, b in states for key in a if torch.is_tensor(a[key]))


def test_an_unfinished_checkpoint_does_not_count(tmp_path, trained):
    folder = RunFolder(tmp_path, RunConfig(), "c")
    folder.save(checkpoint_of(trained, 4))
    unfinished = tmp_path / "checkpoint" / ".unfinished"
    unfinished.mkdir()
    (unfinished / "student.safetensors").write_bytes(b"half")
    assert folder.load().step == 4
    folder.save(checkpoint_of(trained, 6))
    assert folder.load().step == 6 and not unfinished.exists()


@pytest.mark.parametrize("name", ["optimizers.pt", "student.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_named(tmp_path, trained, name):
    folder = RunFolder(tmp_path, RunConfig(), "c")
    folder.save(checkpoint_of(trained, 4))
    path = tmp_path / "checkpoint" / "step-00000004" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        folder.load()


def test_a_full_disk_is_one_sentence_and_costs_no_checkpoint(tmp_path, trained, monkeypatch):
    folder = RunFolder(tmp_path, RunConfig(), "c")
    folder.save(checkpoint_of(trained, 4))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "optimizers" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="disk is full"):
        folder.save(checkpoint_of(trained, 8))
    monkeypatch.undo()
    assert folder.load().step == 4


def test_pickled_code_in_a_checkpoint_is_never_run(tmp_path, trained):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    folder = RunFolder(tmp_path, RunConfig(), "c")
    folder.save(checkpoint_of(trained, 4))
    torch.save([Evil()], tmp_path / "checkpoint" / "step-00000004" / "optimizers.pt")
    with pytest.raises(UserError, match=r"optimizers\.pt: unreadable"):
        folder.load()
    assert not (tmp_path / "touched").exists()


def test_optimizer_states_of_another_kind_of_run_are_refused(tmp_path, trained):
    _, optimizers = trained
    with pytest.raises(UserError, match="2 optimiser states for 1 optimisers"):
        restore_optimizers(optimizers[:1], [o.state_dict() for o in optimizers], tmp_path)


def test_folders_of_other_runs_are_refused_by_the_field_that_differs(tmp_path):
    mine = RunFolder(tmp_path / "run", RunConfig(), "cache-a")
    assert not mine.is_complete()
    mine.claim({})
    assert not mine.is_complete(), "claimed, not finished"
    assert not RunFolder(tmp_path / "run", dataclasses.replace(RunConfig(), threads=2), "cache-a").is_complete()
    with pytest.raises(UserError, match=r"another run \(config\.seed: 0 -> 1\); choose another --out"):
        RunFolder(tmp_path / "run", RunConfig(seed=1), "cache-a").is_complete()
    with pytest.raises(UserError, match=r"cache: 'cache-a' -> 'cache-b'"):
        RunFolder(tmp_path / "run", RunConfig(), "cache-b").is_complete()


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no run"):
        RunFolder(tmp_path, RunConfig(), "c").is_complete()
    other = tmp_path / "cache"
    other.mkdir()
    write_manifest(other, "cache", {})
    with pytest.raises(UserError, match="a run expected, this is a cache"):
        RunFolder(other, RunConfig(), "c").is_complete()


def test_the_best_weights_are_kept_and_the_rest_dropped(tmp_path):
    folder = RunFolder(tmp_path, RunConfig(), "c")
    for step, value in ((2, 0.5), (4, 0.7), (6, 0.6), (8, 0.7)):
        folder.offer(step, value, {"x": torch.tensor([float(step)])})
    step, weights = folder.best()
    assert step == 4 and weights["x"].item() == 4.0, "the first of equals"
    assert [path.name for path in tmp_path.glob("best*.safetensors")] == ["best-00000004.safetensors"]
    folder.keep(6, {"x": torch.ones(1)})
    folder.drop_checkpoints()
    assert {path.name for path in tmp_path.iterdir()} == {"kept"}


def test_a_checkpoint_of_a_step_that_is_already_there_stays(tmp_path, trained):
    """A run that is interrupted before its first new step saves where it came from: deleting that first could lose it."""
    folder = RunFolder(tmp_path, RunConfig(), "c")
    folder.save(checkpoint_of(trained, 4))
    folder.save(dataclasses.replace(checkpoint_of(trained, 4), seconds=9.0, scaler={"scale": 2.0}))
    assert folder.load().seconds == 1.5 and folder.load().scaler == {}


def test_a_warm_start_is_part_of_whose_folder_it_is(tmp_path):
    RunFolder(tmp_path, RunConfig(), "c", start_from="first-run").claim({})
    assert not RunFolder(tmp_path, RunConfig(), "c", start_from="first-run").is_complete()
    for other in (None, "second-run"):
        with pytest.raises(UserError, match="another run .*start_from"):
            RunFolder(tmp_path, RunConfig(), "c", start_from=other).is_complete()
