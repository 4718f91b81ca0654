"""A data set like the real ones out of procedural rooms: scenes, videos, question files, boxes, under their official names.

    OUT/scannet/{posed_images,scans}/SCENE, OUT/scannetpp/data/SCENE, OUT/arkitscenes/Validation/SCENE
    OUT/vsibench/{test.jsonl,test.parquet,procedural/SCENE.mp4,meta_info/procedural_meta_info_val.json}
    OUT/scanqa/ScanQA_v1.0_val.json, OUT/sqa3d/v1_balanced_{questions,sqa_annotations}_val_scannetv2.json
    OUT/scanrefer/ScanRefer_filtered_val.json (also Scan2Cap), OUT/multi3drefer/multi3drefer_val.json
    OUT/metadata/scannet_{train_gt,val_pred}_box.json    true boxes, where the real file of val has a detector's

So one code path serves invented and real data; `vega-edge verify OUT` checks either.

    python -m teacher.scenes.dataset_writer "procedural:val?count=2&frames=32" --out /tmp/dataset
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from teacher.scenes.clip import PosedClip
from teacher.scenes.layout_writer import LAYOUTS
from teacher.scenes.question_files import write_questions
from teacher.scenes.questions import procedural_questions
from teacher.scenes.questions_refer import multi3drefer, scanrefer, upright_box
from teacher.scenes.questions_situated import sqa3d
from teacher.scenes.source import open_scenes
from teacher.scenes.video import write_video
from vega_artifact import UserError, unknown_name, write_json

VIDEOS = "procedural"  # what VSI records call their data set, and so the folder of its videos


def vsi_meta(clip: PosedClip, video: str) -> dict[str, Any]:
    """One scene of VSI-Bench's meta_info file: room size (m2) and centre, counts, oriented boxes by class.

    Source: vision-x-nyu/thinking-in-space@51e089c `data/meta_info`.
    """
    width, length, height = clip.room_size or (0.0, 0.0, 0.0)
    boxes: dict[str, list[dict[str, Any]]] = {}
    for item in clip.objects:
        cosine, sine, corners = float(np.cos(item.yaw)), float(np.sin(item.yaw)), item.corners()
        boxes.setdefault(item.name, []).append(
            {
                "centroid": list(item.center),
                "axesLengths": list(item.size),
                "normalizedAxes": [cosine, sine, 0.0, -sine, cosine, 0.0, 0.0, 0.0, 1.0],
                "min": corners.min(axis=0).tolist(),
                "max": corners.max(axis=0).tolist(),
            }
        )
    counts = {name: len(items) for name, items in boxes.items()}
    room = {"room_size": round(width * length, 1), "room_center": [0.0, 0.0, height / 2]}
    return {"dataset": VIDEOS, "video_path": video, **room, "object_counts": counts, "object_bbox": boxes}


def write_dataset(
    scenes: Iterable[PosedClip], out: Path | str, layouts: Iterable[str] = tuple(LAYOUTS), split: str = "val"
) -> Path:
    """Write everything above for scenes with full ground truth.

    Args:
        scenes: at least one clip. layouts: which posed layouts to write, names of `LAYOUTS`. split: in the files' names.

    Returns:
        `out`. Parquet is left out where pyarrow is not installed; the jsonl holds the same.

    Raises:
        UserError: an unknown layout, no scenes, or a clip without ground truth.
    """
    out, layouts = Path(out), tuple(layouts)
    for name in layouts:
        if name not in LAYOUTS:
            raise unknown_name("layout", name, LAYOUTS)
    tables: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("vsibench", "scanqa", "sqa3d", "scanrefer", "multi3drefer")
    }
    meta, boxes = {}, {}
    for clip in scenes:
        for name in layouts:
            LAYOUTS[name](clip, out / name)
        video = out / "vsibench" / VIDEOS / f"{clip.scene_id}.mp4"
        write_video(video, clip.rgb)
        meta[clip.scene_id] = vsi_meta(clip, f"{VIDEOS}/{clip.scene_id}.mp4")
        boxes[f"scannet/{clip.scene_id}"] = [upright_box(item) for item in clip.objects]
        tables["vsibench"] += procedural_questions(clip, "vsibench")
        tables["scanqa"] += procedural_questions(clip, "scanqa")
        tables["sqa3d"] += sqa3d(clip)
        tables["scanrefer"] += scanrefer(clip)
        tables["multi3drefer"] += multi3drefer(clip)
    if not meta:
        raise UserError(f"{out}: no scenes to write; give a source with at least one")
    _write_tables(out, tables, split)
    write_json(out / "vsibench" / "meta_info" / f"{VIDEOS}_meta_info_val.json", meta)
    write_json(out / "metadata" / f"scannet_{'train_gt' if split == 'train' else 'val_pred'}_box.json", boxes)
    return out


def _write_tables(out: Path, tables: dict[str, list[dict[str, Any]]], split: str) -> None:
    write_questions(out / "vsibench" / "test.jsonl", tables["vsibench"])
    if find_spec("pyarrow"):
        write_questions(out / "vsibench" / "test.parquet", tables["vsibench"])
    write_questions(out / "scanqa" / f"ScanQA_v1.0_{split}.json", tables["scanqa"])
    write_questions(out / "sqa3d" / f"v1_balanced_questions_{split}_scannetv2.json", tables["sqa3d"])
    write_questions(out / "scanrefer" / f"ScanRefer_filtered_{split}.json", tables["scanrefer"])
    write_questions(out / "multi3drefer" / f"multi3drefer_{split}.json", tables["multi3drefer"])


@dataclass(frozen=True)
class Write:
    """Write procedural rooms as a data set in the official layouts."""

    scenes: Positional[str]
    """A procedural URI, such as procedural:val?count=2&frames=32."""
    out: Path
    """The folder to write."""
    layouts: tuple[Literal["scannet", "scannetpp", "arkitscenes"], ...] = ("scannet", "scannetpp", "arkitscenes")
    """Which posed layouts."""
    split: str = "val"
    """The split in the files' names."""


def main() -> int:
    """Exit code 0, or 2 with one sentence on stderr for bad input."""
    import tyro

    args = tyro.cli(Write)
    try:
        print(f"written: {write_dataset(open_scenes(args.scenes), args.out, args.layouts, args.split)}")
    except UserError as error:
        print(f"dataset_writer: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
