"""Scenes by the names of the benchmarks: videos, posed folders, and what is too vague to match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher.lessons import read_lessons
from teacher.scenes import PosedClip, open_scenes
from teacher.scenes.layout_writer import LAYOUTS
from teacher.scenes.question_files import load_questions, write_questions
from teacher.scenes.scene_names import SceneNames
from teacher.scenes.video import write_video
from vega_artifact import UserError

# one scene of each data set, named as VSI-Bench names them
SCENES = {"scannet": "scene0011_00", "scannetpp": "0d2ee665be", "arkitscenes": "41069021"}


def vsi(dataset: str, scene: Any, number: int = 0) -> dict[str, Any]:
    kind = {"question_type": "object_counting", "question": "How many?", "options": None, "ground_truth": "2"}
    return {"id": number, "dataset": dataset, "scene_name": scene, **kind}


def scanqa(scene: str) -> dict[str, Any]:
    return {"scene_id": scene, "question_id": f"{scene}-0", "question": "Is there a chair?", "answers": ["yes"]}


def videos(root: Path, pattern: str, scenes: dict[str, str] = SCENES) -> SceneNames:
    for dataset, scene in scenes.items():
        write_video(root / dataset / f"{scene}.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    return SceneNames(open_scenes(f"video:{root}/{pattern}?frames=1").scene_ids)


def test_videos_of_all_data_sets_match_the_official_records(tmp_path: Path) -> None:
    names = videos(tmp_path, "*/*.mp4")
    for dataset, scene in SCENES.items():
        assert names.find(vsi(dataset, scene), "scene_name") == f"video-{dataset}-{scene}"
    assert names.find(vsi("scannetpp", SCENES["scannet"]), "scene_name") is None, "another data set's scene"
    assert names.find(scanqa("scene0011_00"), "scene_id") == "video-scannet-scene0011_00"
    assert names.find(scanqa("scene0011_01"), "scene_id") is None
    assert names.find({}, "scene_id") is None


def test_videos_of_one_data_set_and_of_deeper_folders_match_too(tmp_path: Path) -> None:
    names = videos(tmp_path / "one", "arkitscenes/*.mp4")
    assert names.ids == ("video-41069021",)
    assert names.find(vsi("arkitscenes", "41069021"), "scene_name") == "video-41069021"
    write_video(tmp_path / "deep" / "other" / "x.mp4", np.zeros((2, 16, 16, 3), np.uint8))
    names = videos(tmp_path / "deep" / "vsibench", "../**/*.mp4")
    assert names.find(vsi("scannet", "scene0011_00"), "scene_name") == "video-vsibench-scannet-scene0011_00"


def test_a_scene_that_two_videos_show_is_refused() -> None:
    twice = SceneNames(["video-scannet-a.mp4", "video-scannet-a.mkv"])
    with pytest.raises(UserError, match=r"scene 'a' of the questions may be 'video-scannet-a.mp4' or 'video-scannet-a.mkv'"):
        twice.find(vsi("scannet", "a"), "scene_name")
    folders = SceneNames(["video-scannet-a", "video-scannetpp-a"])
    assert folders.find(vsi("scannetpp", "a"), "scene_name") == "video-scannetpp-a"
    with pytest.raises(UserError, match="in folders named like the data sets"):
        folders.find(scanqa("a"), "scene_id")
    assert SceneNames(["a", "video-a"]).find(scanqa("a"), "scene_id") == "a", "the very name comes first"


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_posed_folders_are_named_like_the_records(layout: str, tmp_path: Path) -> None:
    """Through the question files, since ARKitScenes' names come out of parquet and JSON as numbers."""
    scene = SCENES[layout]
    camera = np.array([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]])
    pictures, depth = np.zeros((1, 16, 16, 3), np.uint8), np.ones((1, 16, 16), np.float32)
    clip = PosedClip(scene, pictures, depth, camera, np.eye(4)[None], np.arange(1))
    LAYOUTS[layout](clip, tmp_path / "root")
    inside = {"scannet": "/posed_images"}.get(layout, "")
    names = SceneNames(open_scenes(f"{layout}:{tmp_path}/root{inside}?frames=1").scene_ids)
    name: Any = int(scene) if scene.isdigit() else scene
    write_questions(tmp_path / "test.jsonl", [vsi(layout, name)])
    assert names.find(load_questions(tmp_path / "test.jsonl")[0], "scene_name") == scene
    assert layout != "scannet" or names.find(scanqa(scene), "scene_id") == scene


def test_lessons_are_filed_under_the_scenes_of_the_cache(tmp_path: Path) -> None:
    write_questions(tmp_path / "vsi.jsonl", [vsi("scannet", "scene0011_00"), vsi("scannet", "scene0012_00", 1)])
    write_questions(tmp_path / "scanqa.json", [scanqa("scene0011_00")])
    found = read_lessons([tmp_path / "vsi.jsonl", tmp_path / "scanqa.json"], ["video-scannet-scene0011_00"])
    assert [lesson.answer for lesson in found.scenes["video-scannet-scene0011_00"]] == ["2", "yes"]
    assert found.missing == {"scene0012_00": 1}
