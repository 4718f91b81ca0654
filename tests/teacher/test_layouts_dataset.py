"""A whole data set written from rooms, checked by `vega-edge verify`, and everything that can be missing or wrong in one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vega_edge
from teacher.scenes import open_scenes
from teacher.scenes.dataset_check import check_dataset, find
from teacher.scenes.dataset_writer import write_dataset
from teacher.scenes.question_files import load_questions
from tests.teacher.painted import FURNITURE, room
from vega_artifact import UserError

SCENES = ("scene0001_00", "scene0002_00")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_dataset([room(name) for name in SCENES], tmp_path_factory.mktemp("data"))


@pytest.fixture
def dataset(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "data")


def faults_of(path: Path) -> list[str]:
    return check_dataset(path, find(path))[1]


# --- what is written -------------------------------------------------------------------------------------------------


def test_every_file_is_where_the_official_code_looks(written):
    files = {
        "vsibench/test.jsonl": "vsibench",
        "scanqa/ScanQA_v1.0_val.json": "scanqa",
        "sqa3d/v1_balanced_questions_val_scannetv2.json": "sqa3d",
        "scanrefer/ScanRefer_filtered_val.json": "scanrefer",
        "multi3drefer/multi3drefer_val.json": "multi3drefer",
    }
    for name, task in files.items():
        records = load_questions(written / name, task)
        assert {record["scene_name" if task == "vsibench" else "scene_id"] for record in records} == set(SCENES)
    for uri in ("scannet:{}/scannet/posed_images", "scannetpp:{}/scannetpp", "arkitscenes:{}/arkitscenes"):
        assert open_scenes(uri.format(written)).scene_ids == SCENES
    for record in load_questions(written / "vsibench" / "test.jsonl"):
        assert (written / "vsibench" / record["dataset"] / f"{record['scene_name']}.mp4").exists()
    video = open_scenes(f"video:{written}/vsibench/procedural/scene0001_00.mp4?frames=0")[0]
    assert len(video.rgb) == 5
    boxes = json.loads((written / "metadata" / "scannet_val_pred_box.json").read_text())
    assert list(boxes) == [f"scannet/{name}" for name in SCENES] and len(boxes["scannet/scene0001_00"]) == len(FURNITURE)


def test_meta_info_gives_back_the_answers(written):
    meta = json.loads((written / "vsibench" / "meta_info" / "procedural_meta_info_val.json").read_text())["scene0001_00"]
    assert meta["room_size"] == 20.0 and meta["object_counts"]["stool"] == 2
    for item in FURNITURE:
        box = next(box for box in meta["object_bbox"][item.name] if box["centroid"] == list(item.center))
        axes = np.array(box["normalizedAxes"]).reshape(3, 3)
        signs = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
        corners = (signs * box["axesLengths"]) @ axes + box["centroid"]
        np.testing.assert_allclose(corners, item.corners(), atol=1e-9)
        np.testing.assert_allclose([corners.min(0), corners.max(0)], [box["min"], box["max"]], atol=1e-9)


def test_nothing_or_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match="no scenes to write"):
        write_dataset([], tmp_path / "none")
    with pytest.raises(UserError, match="unknown layout 'scanet'. Did you mean 'scannet'"):
        write_dataset([room()], tmp_path / "none", ["scanet"])
    assert not (tmp_path / "none").exists()


def test_the_writer_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "teacher.scenes.dataset_writer", "procedural:valley", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(vega_edge.__file__).parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("dataset_writer: unknown split 'valley'") and not done.stdout


# --- vega-edge verify ------------------------------------------------------------------------------------------------


def test_verify_counts_a_whole_data_set(written, capsys):
    assert vega_edge.main(["verify", str(written)]) == 0
    said = capsys.readouterr().out
    assert "scannet: 2 scenes, 5 to 5 frames each, 2 with axis alignment" in said
    for layout in ("scannetpp", "arkitscenes"):
        assert f"{layout}: 2 scenes, 5 to 5 frames each" in said
    count = len(load_questions(written / "vsibench" / "test.jsonl"))
    assert f"test.jsonl: vsibench, {count} questions about 2 scenes, 0 schema errors" in said
    assert "multi3drefer_val.json: multi3drefer" in said and "zt_w_d 4" in said
    assert "nothing missing, no schema errors" in said


def test_data_linked_into_place_is_found(written, tmp_path):
    for name in ("scanqa", "scannet"):
        (tmp_path / name).symlink_to(written / name, target_is_directory=True)
    (tmp_path / "scanqa_too").symlink_to(tmp_path, target_is_directory=True)  # a circle
    found = find(tmp_path)
    assert set(found.scenes["scannet"]) == set(SCENES) and not check_dataset(tmp_path, found)[1]


def test_verify_of_one_file_checks_records_only(written, capsys):
    assert vega_edge.main(["verify", str(written / "scanqa" / "ScanQA_v1.0_val.json")]) == 0
    said = capsys.readouterr().out
    assert "scanqa, " in said and "missing" not in said.splitlines()[0]


def test_missing_scans_are_named_with_their_questions(dataset, capsys):
    shutil.rmtree(dataset / "scannet" / "posed_images" / SCENES[1])
    shutil.rmtree(dataset / "scannetpp")
    shutil.rmtree(dataset / "arkitscenes")
    assert not faults_of(dataset), "its video is still there"
    (dataset / "vsibench" / "procedural" / f"{SCENES[1]}.mp4").unlink()
    assert vega_edge.main(["verify", str(dataset)]) == 2
    said = capsys.readouterr()
    count = sum(r["scene_id"] == SCENES[1] for r in load_questions(dataset / "scanqa" / "ScanQA_v1.0_val.json"))
    assert f"missing scans: 1 of 2 scenes, {count} questions: scene0002_00" in said.out
    assert f"scene scene0002_00 ({count} questions) is neither a posed folder nor a video here" in said.out
    assert said.err.startswith("vega-edge: ") and len(said.err.splitlines()) == 1 and "faults, the first: " in said.err


def test_a_vsi_video_must_lie_under_its_data_set(dataset):
    for layout in ("scannet", "scannetpp", "arkitscenes"):
        shutil.rmtree(dataset / layout)
    assert not faults_of(dataset)
    (dataset / "vsibench" / "procedural").rename(dataset / "vsibench" / "videos")
    lost = faults_of(dataset)
    assert {Path(fault.split(": ")[0]).name for fault in lost} <= {"test.jsonl", "test.parquet"} and len(lost) in (2, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scannet/posed_images/scene0001_00/00002.txt", "1 of 5 frames have no pose, the first is 00002"),
        ("scannet/posed_images/scene0001_00/00002.png", "1 of 5 frames have no depth"),
        ("scannet/posed_images/scene0001_00/intrinsic.txt", "intrinsic.txt: missing"),
        ("scannetpp/data/scene0001_00/iphone/pose_intrinsic_imu.json", "pose_intrinsic_imu.json: missing"),
        ("scannetpp/data/scene0001_00/iphone/depth/frame_000003.png", "no depth, the first is frame_000003"),
        ("arkitscenes/Validation/scene0001_00/lowres_wide.traj", "lowres_wide.traj: missing"),
        ("arkitscenes/Validation/scene0001_00/lowres_wide_intrinsics/scene0001_00_0.200.pincam", "frames have no camera"),
        (
            "sqa3d/v1_balanced_sqa_annotations_val_scannetv2.json",
            "put v1_balanced_sqa_annotations_val_scannetv2.json beside it",
        ),
    ],
)
def test_a_missing_file_is_one_fault(dataset, name, message):
    (dataset / name).unlink()
    faults = faults_of(dataset)
    assert len(faults) == 1 and message in faults[0]


def test_every_bad_record_is_counted_and_few_are_printed(dataset, capsys):
    path = dataset / "scanqa" / "ScanQA_v1.0_val.json"
    records = json.loads(path.read_text())
    bad = [{**record, "answers": []} for record in records[:25]]
    path.write_text(json.dumps(bad + records[25:] + records[25:26]))
    assert vega_edge.main(["verify", str(path)]) == 2
    said = capsys.readouterr()
    assert f"scanqa, {len(records) - 25} questions" in said.out and "26 schema errors" in said.out
    assert "and 6 more" in said.out and "26 faults" in said.err


def test_oddities_that_scorers_meet_are_reported_without_being_faults(tmp_path):
    answers = (["two\nlines", " "], ["yes"])
    scanqa = [{"scene_id": "s", "question_id": f"val-{k}", "question": "q", "answers": a} for k, a in enumerate(answers)]
    (tmp_path / "ScanQA_v1.0_val.json").write_text(
        json.dumps([*scanqa, {"scene_id": "s", "question_id": "t", "question": "q"}])
    )
    base = {"dataset": "scannet", "scene_name": "s", "question": "q", "options": None, "question_type": "object_counting"}
    (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({**base, "id": k, "ground_truth": str(k)}) for k in range(3)))
    (tmp_path / "scannet").mkdir()
    (tmp_path / "scannet" / "s.mp4").write_bytes(b"")
    lines, faults = check_dataset(tmp_path, find(tmp_path))
    assert not faults
    for sentence in (
        "1 questions have no answers",
        "1 answers hold a line break",
        "1 answers are empty",
        "1 questions have the true value 0",
    ):
        assert any(sentence in line for line in lines), sentence


def test_a_folder_that_is_neither_stays_an_unfinished_artifact(tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    assert vega_edge.main(["verify", str(tmp_path)]) == 2
    assert "manifest.json: no such file" in capsys.readouterr().err
