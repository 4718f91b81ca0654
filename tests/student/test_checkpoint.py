"""A student survives the way to disk and back; everything else at that place is refused."""

import json
from dataclasses import asdict

import pytest
import torch

from student import create_student, load_student
from student.checkpoint import INITIAL_WEIGHTS, WEIGHTS, config_to_json, read_weights, save_weights
from vega_artifact import UserError, write_manifest


@pytest.fixture
def run(tmp_path):
    """A run folder as the trainer writes it, with students of two seeds as distilled and undistilled."""
    students = {WEIGHTS: create_student(heads={"fused": 6}, denormalize="full", seed=1)}
    students[INITIAL_WEIGHTS] = create_student(heads={"fused": 6}, denormalize="full", seed=2)
    students[WEIGHTS].denormalizers["fused"].set(torch.randn(6, 6), torch.randn(6))
    for name, student in students.items():
        save_weights(tmp_path / name, student.state_dict())
    record = config_to_json(students[WEIGHTS].config)
    write_manifest(tmp_path, "run", {"seed": 1}, {"cache": "c"}, list(students), student=record)
    return tmp_path, students


def test_round_trip_gives_the_same_answers(run):
    path, students = run
    images = torch.randn(2, 3, 128, 128)
    for name, undistilled in ((WEIGHTS, False), (INITIAL_WEIGHTS, True)):
        loaded = load_student(path, undistilled=undistilled)
        assert not loaded.training and asdict(loaded.config) == asdict(students[name].config)
        with torch.no_grad():
            assert torch.equal(loaded(images)["fused"], students[name].eval()(images)["fused"])


def test_loading_leaves_the_random_state_alone(run):
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    load_student(run[0])
    assert torch.equal(torch.rand(2), expected)


def test_altered_or_missing_weights_are_named(run):
    path, _ = run
    content = bytearray((path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (path / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"student\.safetensors: content differs"):
        load_student(path)
    (path / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"student\.safetensors: named in the manifest but missing"):
        load_student(path)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: missing"):
        load_student(tmp_path)
    write_manifest(tmp_path, "cache", {})
    with pytest.raises(UserError, match="a run expected, this is a cache"):
        load_student(tmp_path)


def test_a_manifest_that_describes_another_student_is_refused(run):
    path, _ = run
    manifest = json.loads((path / "manifest.json").read_text())
    for change, message in (({"heads": {"fused": 7}}, "do not fit"), ({"colour": "red"}, "does not describe a student")):
        record = {**manifest, "student": {**manifest["student"], **change}}
        (path / "manifest.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match=message):
            load_student(path)


def test_broken_weight_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(UserError, match=r"broken\.safetensors: not a readable"):
        read_weights(tmp_path / "broken.safetensors")
