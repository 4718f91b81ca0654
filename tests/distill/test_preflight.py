"""What is refused before a cache is read, and what makes a run another run: no time is lost and no folder left behind."""

import dataclasses
import importlib

import psutil
import pytest
import torch
from safetensors.torch import save_file

from distill import RunConfig, dataset, train
from distill.preflight import batch_statistics, run_folder
from student import create_student
from student.registry import outline
from teacher.launch import local_processes
from vega_artifact import UserError


@pytest.fixture
def unread(monkeypatch):
    """Reading frames fails the test."""
    trainer = importlib.import_module("distill.train")  # `distill.train` itself is the function
    monkeypatch.setattr(trainer, "load_frames", lambda *_: pytest.fail("the cache was read"))
    monkeypatch.setattr(trainer, "estimate_from", lambda *_: pytest.fail("statistics were computed"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": "timm:vit_tiny_patch16_225"}, "unknown timm model 'vit_tiny_patch16_225'"),
        ({"image_size": (60, 64)}, "image size 60x64 does not fit, it takes multiples of 16x16"),
        ({"pretrained": "nowhere.safetensors"}, "nowhere.safetensors: no such weight file"),
        ({"batch": 300}, "batch 300 is larger than the data, 4. frames of 9 training scenes"),
        ({"noise_cache": "nowhere"}, "nowhere is no finished cache"),
        ({"weights": {"depth": 1.0}}, "unknown stream in the cache .*'depth'"),
        ({"cross_view": 1.0, "batch": 7}, "takes pairs of views, but its share of batch 7 is 7 frames"),
        ({"memory": 8, "window": 3}, "windows of 3 frames, but a process takes 8"),
    ],
)
def test_is_said_before_the_cache_is_read(unread, quick, cache_path, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(cache_path, tmp_path / "run", dataclasses.replace(quick, **change))
    assert not (tmp_path / "run").exists()


def test_a_window_that_no_scene_has_leaves_no_folder_that_would_refuse_a_shorter_one(quick, cache_path, tmp_path):
    long = dataclasses.replace(quick, memory=8, window=8)
    with pytest.raises(UserError, match="no scene of this cache has 8 frames in a row; set window=5 or less"):
        train(cache_path, tmp_path / "run", long)
    assert not (tmp_path / "run").exists()


def test_a_cache_must_fit_into_memory_once_and_without_one_once_per_process(cache, monkeypatch):
    needed = dataset.bytes_of(cache, cache.scene_ids, ["fused"], None)
    room = type("Memory", (), {"available": int(needed / dataset.MEMORY_PART * 1.5)})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    dataset.check_memory(cache, needed)
    with pytest.raises(UserError, match="does not fit into memory .2 processes of .*; start fewer processes"):
        dataset.check_memory(cache, needed, processes=2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert local_processes() == 2


def test_how_many_frames_share_statistics_belongs_to_a_run_with_batch_norm_only():
    config = RunConfig(batch=48, student="mobilenetv4_conv_small")
    convolutional, transformer = (outline(name, (64, 64)) for name in ("mobilenetv4_conv_small", "vit_micro"))
    assert batch_statistics(convolutional, config, 1) is None
    assert batch_statistics(convolutional, config, 4) == "of 12 frames"
    assert batch_statistics(convolutional, dataclasses.replace(config, accumulate=2), 4) == "of 6 frames"
    assert batch_statistics(transformer, dataclasses.replace(config, accumulate=2), 4) is None


def test_parts_of_a_batch_make_another_run_of_a_student_with_batch_norm(quick, cache, tmp_path):
    student = dataclasses.replace(quick, student="mobilenetv4_conv_small")
    run_folder(tmp_path / "run", student, cache, None).claim({})
    assert not run_folder(tmp_path / "run", student, cache, None).is_complete()
    with pytest.raises(UserError, match="holds another run .*batch_statistics"):
        run_folder(tmp_path / "run", dataclasses.replace(student, accumulate=2), cache, None).is_complete()


def test_other_weights_at_the_same_path_make_another_run(quick, cache, tmp_path):
    path = tmp_path / "weights.safetensors"
    config = dataclasses.replace(quick, pretrained=str(path))
    backbone = create_student("vit_micro", heads={"fused": 3}, image_size=(32, 32), grid=(2, 2)).backbone
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    save_file(state, path)
    train(cache.path, tmp_path / "run", dataclasses.replace(config, steps=2))
    assert run_folder(tmp_path / "run", dataclasses.replace(config, steps=2), cache, None).is_complete()
    save_file({name: value + 1 for name, value in state.items()}, path)
    with pytest.raises(UserError, match="holds another run .*pretrained"):
        train(cache.path, tmp_path / "run", dataclasses.replace(config, steps=2))


def test_two_processes_do_not_train_in_one_folder(quick, cache, cache_path, tmp_path):
    folder = run_folder(tmp_path / "run", quick, cache, None)
    with folder.alone(), pytest.raises(UserError, match="another process is training this run"):
        train(cache_path, tmp_path / "run", quick)
    assert not (tmp_path / "run" / "config.json").exists()
    finished = train(cache_path, tmp_path / "run", quick)
    assert not (finished / ".run.lock").exists()
    with pytest.raises(UserError, match="has just finished this run"), folder.alone():
        pass


def test_seeds_and_sizes_that_cannot_be_are_refused():
    for change, message in (
        ({"seed": -1}, "seed must not be negative"),
        ({"image_size": (0, 0)}, "image_size .0, 0. must be a height and a width in pixels"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
    ):
        with pytest.raises(UserError, match=message):
            RunConfig(**change)


def test_outlines_hold_no_values():
    assert all(parameter.device == torch.device("meta") for parameter in outline("vit_micro", (64, 64)).parameters())
