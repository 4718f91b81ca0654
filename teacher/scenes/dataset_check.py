"""What a data set on disk holds and lacks, before anything runs: question files, scenes, and the scenes questions ask about.

`vega-edge verify` for folders that no stage of ours wrote. Question files are found by their official names, scenes by their
layout, anywhere a few levels below the folder. Every record is checked, every frame's files are counted; pictures and poses
are not opened (the scene sources do that, and list what they drop).

    vega-edge verify /data/benchmarks
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from teacher.scenes.arkitscenes import frames_folder
from teacher.scenes.folders import axis_alignment
from teacher.scenes.question_files import Examined, examine
from teacher.scenes.scannetpp import POSES
from vega_artifact import UserError

OFFICIAL = (
    "ScanQA_v1.0_*.json",
    "v1_balanced_questions_*.json",
    "ScanRefer_filtered*.json",
    "multi3drefer_*.json",
    "test*.jsonl",
    "test*.parquet",
)
CONVERTED = "*_llava_style.json"  # VEGA-3D's training copies of the same questions, in another schema
SUFFIXES = (".json", ".jsonl", ".parquet")
DEPTH = 5  # folders below the one given that are looked into
SHOWN = 5  # names listed of what is missing
LISTED = 20  # faults printed; all are counted
POSED = ("scannet", "scannetpp", "arkitscenes")


@dataclass
class Found:
    """What lies under a folder: question files, scene folders by layout and name, videos by "parent/name" (VSI-Bench's way)."""

    questions: list[Path] = field(default_factory=list)
    scenes: dict[str, dict[str, Path]] = field(default_factory=lambda: {name: {} for name in POSED})
    videos: dict[str, Path] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.questions or self.videos or any(self.scenes.values()))

    def has(self, record: dict[str, Any], scene: str) -> bool:
        """Whether the scene a record asks about is there, as a posed folder or as a video."""
        if any(scene in scenes for scenes in self.scenes.values()):
            return True
        if "dataset" in record:
            return f"{record['dataset']}/{scene}" in self.videos
        return any(name.rpartition("/")[2] == scene for name in self.videos)


def find(path: Path) -> Found:
    """Look at a question file, or into a folder; empty where there is nothing of a data set."""
    found = Found()
    if path.is_file() and path.suffix in SUFFIXES:
        found.questions.append(path)
    for name, folders, files in os.walk(path, followlinks=True):  # data sets are often linked into place; DEPTH ends circles
        folder = Path(name)
        layout = _layout(folder, folders, files)
        if layout:
            found.scenes[layout][folder.name] = folder
        if layout or folder.name == "scans" or len(folder.relative_to(path).parts) >= DEPTH:
            folders.clear()
        folders.sort()
        for file in sorted(files):
            if any(fnmatch(file, pattern) for pattern in OFFICIAL) and not fnmatch(file, CONVERTED):
                found.questions.append(folder / file)
            elif file.endswith(".mp4"):
                found.videos[f"{folder.name}/{file.removesuffix('.mp4')}"] = folder / file
    return found


def _layout(folder: Path, folders: list[str], files: list[str]) -> str | None:
    """The layout in which this folder is a scene."""
    if "iphone" in folders and (folder / "iphone" / "rgb").is_dir():
        return "scannetpp"
    if frames_folder(folder):
        return "arkitscenes"
    return "scannet" if any(name.endswith(".jpg") and name[:-4].isdigit() for name in files) else None


def check_dataset(path: Path, found: Found) -> tuple[list[str], list[str]]:
    """Read everything once.

    Returns:
        Lines for the user (counts per file, per layout, and everything odd), and one sentence for every fault: a bad record, a
        missing scene, a frame without its files.
    """
    lines: list[str] = []
    faults: list[str] = []
    for layout, scenes in found.scenes.items():
        if scenes:
            frames = {name: _frames(layout, folder, faults) for name, folder in scenes.items()}
            counts = f"{min(frames.values())} to {max(frames.values())} frames each"
            lines.append(f"{layout}: {len(scenes)} scenes, {counts}{_alignment(layout, scenes, faults)}")
    if found.videos:
        lines.append(f"video: {len(found.videos)} mp4 files")
    for file in found.questions:
        try:
            examined = examine(file)
        except UserError as error:
            faults.append(str(error))
            lines.append(f"{file.name}: unreadable")
            continue
        faults += examined.faults
        lines += _describe(file, examined)
        if path.is_dir():
            lines += _missing(file, examined, found, faults)
    return lines, faults


def _describe(file: Path, examined: Examined) -> list[str]:
    """Counts of one question file, and oddities that a scorer meets."""
    schema, records = examined.schema, examined.records
    scenes = len({record[schema.scene] for record in records})
    lines = [
        f"{file.name}: {schema.name}, {len(records)} questions about {scenes} scenes, {len(examined.faults)} schema errors"
    ]
    if schema.kind:
        kinds = Counter(record[schema.kind] for record in records)
        lines.append(f"  by type: {', '.join(f'{name} {count}' for name, count in sorted(kinds.items()))}")
    hidden = sum("answers" not in record for record in records) if schema.name == "scanqa" else 0
    breaks = sum("\n" in answer for record in records for answer in record.get("answers", ()))
    empty = sum(not answer.strip() for record in records for answer in record.get("answers", ()))
    zero = sum(not record["options"] and float(record["ground_truth"]) == 0 for record in records if schema.name == "vsibench")
    for count, what in (
        (hidden, "questions have no answers (hidden test split): they cannot be scored"),
        (breaks, "answers hold a line break: METEOR's process loses its place there, the scorer replaces them"),
        (empty, "answers are empty"),
        (zero, "questions have the true value 0: relative error is undefined, the official scorer stops"),
    ):
        if count:
            lines.append(f"  {count} {what}")
    return lines


def _missing(file: Path, examined: Examined, found: Found, faults: list[str]) -> list[str]:
    """The scenes a file asks about that are neither a posed folder nor a video; each is a fault."""
    name = examined.schema.scene
    asked = Counter(record[name] for record in examined.records)
    lost = sorted({record[name] for record in examined.records if not found.has(record, record[name])})
    if not lost:
        return []
    questions = sum(asked[scene] for scene in lost)
    shown = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
    faults += [f"{file}: scene {scene} ({asked[scene]} questions) is neither a posed folder nor a video here" for scene in lost]
    return [f"  missing scans: {len(lost)} of {len(asked)} scenes, {questions} questions: {shown}"]


def _alignment(layout: str, scenes: dict[str, Path], faults: list[str]) -> str:
    """How many ScanNet scenes have their axis alignment."""
    if layout != "scannet":
        return ""
    aligned = 0
    for folder in scenes.values():
        try:
            aligned += axis_alignment(folder) is not None
        except UserError as error:
            faults.append(str(error))
    return f", {aligned} with axis alignment"


def _frames(layout: str, folder: Path, faults: list[str]) -> int:
    """Number of frames of a scene; files they lack are faults, one sentence for each kind."""
    if layout == "scannetpp":
        phone = folder / "iphone"
        frames, needed = _stems(phone / "rgb", ".jpg"), [phone / POSES]
        kinds = {"depth": _stems(phone / "depth", ".png")}
    elif layout == "arkitscenes":
        root = frames_folder(folder) or folder
        frames, needed = _stems(root / "lowres_wide", ".png"), [root / "lowres_wide.traj"]
        kinds = {"depth": _stems(root / "lowres_depth", ".png"), "camera": _stems(root / "lowres_wide_intrinsics", ".pincam")}
    else:
        frames, needed = {stem for stem in _stems(folder, ".jpg") if stem.isdigit()}, [folder / "intrinsic.txt"]
        kinds = {"depth": _stems(folder, ".png"), "pose": _stems(folder, ".txt")}
    faults += [f"{file}: missing; the scene cannot be read without it" for file in needed if not file.exists()]
    for kind, stems in kinds.items():
        # A scene without any depth is a scene of colours and poses, which is allowed.
        if (lost := sorted(frames - stems)) and (stems or kind != "depth"):
            faults.append(f"{folder}: {len(lost)} of {len(frames)} frames have no {kind}, the first is {lost[0]}")
    if not frames:
        faults.append(f"{folder}: no frames in it; extract or fetch the scene again")
    return len(frames)


def _stems(folder: Path, suffix: str) -> set[str]:
    return (
        {entry.name.removesuffix(suffix) for entry in os.scandir(folder) if entry.name.endswith(suffix)}
        if folder.is_dir()
        else set()
    )


def verify_dataset(path: Path, found: Found) -> None:
    """Print what is there; UserError (after all of it is printed) when something is missing or wrong."""
    lines, faults = check_dataset(path, found)
    print("\n".join(lines))
    if faults:
        print("\n".join(["faults:", *(f"  {fault}" for fault in faults[:LISTED])]))
        if len(faults) > LISTED:
            print(f"  and {len(faults) - LISTED} more")
        raise UserError(f"{path}: {len(faults)} faults, the first: {faults[0]}")
    print(f"{path}: nothing missing, no schema errors")
