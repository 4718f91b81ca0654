"""Windows of consecutive frames, and what is trained on them: a student with memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill import RunConfig, train
from distill.batches import share
from distill.distiller import Distiller
from distill.losses import Objective
from distill.train import LOG
from distill.windows import check_windows, window_indices
from student import StreamingStudent, create_student, load_model, load_streaming
from vega_artifact import UserError, read_manifest

LENGTHS = (4, 5, 2, 3)  # the third scene is shorter than a window


def windows(step: int, seed: int = 0, batch: int = 6) -> np.ndarray:
    return window_indices(seed, step, batch, 3, LENGTHS).reshape(-1, 3)


class TestWindows:
    def test_a_window_is_frames_in_a_row_of_one_scene(self):
        scene = np.repeat(np.arange(4), LENGTHS)
        for step in range(12):
            for window in windows(step):
                assert (np.diff(window) == 1).all() and len(set(scene[window])) == 1

    def test_every_epoch_holds_every_window_once(self):
        found = np.concatenate([windows(step) for step in range(3)])[:, 0]  # 2 + 3 + 0 + 1 windows there are
        assert sorted(found) == [0, 1, 4, 5, 6, 11]
        assert list(found) != sorted(found) and list(found) != list(np.concatenate([windows(s, 1) for s in range(3)])[:, 0])

    def test_what_cannot_be_done_is_said(self, quick):
        with pytest.raises(UserError, match="no scene of this cache has 6 frames in a row; set window=5 or less"):
            window_indices(0, 0, 6, 6, LENGTHS)
        with pytest.raises(UserError, match="windows of 3 frames, but a process takes 8 of batch 8 at once"):
            check_windows(replace(quick, memory=4, window=3), share(quick, 1))
        with pytest.raises(UserError, match="sees whole frames in order: set crop=0 and cross_view=0, or memory=0"):
            RunConfig(memory=8, cross_view=0.1)


def test_the_distiller_gives_a_student_with_memory_its_frames_as_windows():
    """The memory crosses frames of a window, and no border between windows."""
    student = StreamingStudent.from_student(create_student(heads={"fused": 8}, image_size=(32, 32), grid=(2, 2)), memory=4)
    for mixer in student.mixers:
        torch.nn.init.normal_(mixer.read.weight)
    distiller = Distiller(student.eval(), Objective(weights={"fused": 1.0}), "fp32", window=3)
    images = torch.randn(6, 3, 32, 32)
    changed = images.clone()
    changed[0] += 1
    with torch.no_grad():
        before, after = (distiller.predict(each)["fused"] for each in (images, changed))
    differs = (before - after).abs().amax((1, 2)) > 1e-6
    assert before.shape == (6, 4, 8) and differs.tolist() == [True, True, True, False, False, False]


class TestTraining:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(cache, tmp_path_factory):
        config = RunConfig(steps=12, batch=8, evaluate_every=6, log_every=2, precision="fp32", threads=1, progress=False)
        return train(cache, tmp_path_factory.mktemp("memory") / "run", replace(config, memory=6, window=4))

    def test_a_run_with_memory_ends_as_any_other(self, run):
        manifest = read_manifest(run, "run")
        student = load_streaming(run)
        assert manifest["student"]["memory"] == 6 and manifest["parameters"] == student.parameter_count()
        assert -1 <= manifest["validation"]["fused"]["centred"] <= 1
        assert all(mixer.read.weight.abs().max() > 0 for mixer in student.mixers), "the memory took part in learning"
        assert (run / LOG).read_text().count('"validation"') == 2
        assert isinstance(load_model(run, undistilled=True), StreamingStudent)

    def test_it_begins_where_a_run_without_memory_ended(self, run, cache, tmp_path, quick):
        single = train(cache, tmp_path / "single", replace(quick, steps=2))
        warm = train(cache, tmp_path / "warm", replace(quick, steps=1, memory=6, window=4, warmup=0), start_from=single)
        began, ended = load_model(warm, undistilled=True).frame.state_dict(), load_model(single).state_dict()
        assert all(torch.equal(began[name], value) for name, value in ended.items() if name.startswith("backbone."))
        with pytest.raises(UserError, match="window"):
            train(cache, tmp_path / "bad", replace(quick, memory=6, window=3))

    def test_an_interrupted_run_with_memory_ends_in_the_same_weights(self, run, cache, tmp_path, quick, monkeypatch):
        from distill.train import Trainer

        config = replace(quick, memory=6, window=4, checkpoint_steps=4)
        advance = Trainer.advance

        def stop(self, window):
            if self.step == 6:
                raise KeyboardInterrupt
            advance(self, window)

        monkeypatch.setattr(Trainer, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            train(cache, tmp_path / "run", config)
        monkeypatch.undo()
        again, whole = load_model(train(cache, tmp_path / "run", config)), load_model(run)
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
