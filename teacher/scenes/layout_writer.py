"""Posed clips written out in the layouts of ScanNet, ScanNet++ and ARKitScenes, such that our readers give them back.

From any scene source with geometry to the folders that `folders.py`, `scannetpp.py` and `arkitscenes.py` read; called by
`dataset_writer.py`. ScanNet worlds are turned by a fixed angle, with the axis alignment that undoes it beside them.

    python -m teacher.scenes.dataset_writer "procedural:val?count=2&frames=32" --out /tmp/dataset --layouts scannet
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vega_artifact import UserError, write_json, write_text

from .clip import PosedClip

TURN = 0.4  # radians about +z between a ScanNet world and the walls
FARTHEST = 65.535  # metres a 16-bit depth image of millimetres can hold
RATE = 10.0  # frames a second of an ARKitScenes low-resolution stream


def _geometry(clip: PosedClip) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth as uint16 (T, H, W) millimetres, intrinsics (3, 3), camera-to-world (T, 4, 4); UserError without them."""
    if clip.depth is None or clip.intrinsics is None or clip.camera_to_world is None:
        raise UserError(f"{clip.scene_id}: posed layouts need depth, intrinsics and poses; write it as video only")
    if clip.depth.max() > FARTHEST:
        raise UserError(f"{clip.scene_id}: {clip.depth.max():.0f} m do not fit into 16 bits of millimetres; drop such depth")
    return np.round(clip.depth * 1000).astype(np.uint16), clip.intrinsics, clip.camera_to_world


def _matrix(path: Path, matrix: np.ndarray) -> None:
    full = np.eye(4)
    full[: len(matrix), : len(matrix)] = matrix
    np.savetxt(path, full, fmt="%.6f")


def write_scannet(clip: PosedClip, root: Path) -> Path:
    """posed_images/SCENE under `root`, with scans/SCENE/SCENE.txt for the axis alignment; returns the scene's folder."""
    depth, camera, poses = _geometry(clip)
    folder, scan = root / "posed_images" / clip.scene_id, root / "scans" / clip.scene_id
    folder.mkdir(parents=True, exist_ok=True)
    scan.mkdir(parents=True, exist_ok=True)
    align = np.eye(4)
    align[:2, :2] = [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]]
    write_text(
        scan / f"{clip.scene_id}.txt", f"axisAlignment = {' '.join(f'{x:.6f}' for x in align.ravel())}\nsceneType = Room\n"
    )
    for number, image, far, pose in zip(clip.frame_ids.tolist(), clip.rgb, depth, poses):
        Image.fromarray(image).save(folder / f"{number:05d}.jpg", quality=95)
        Image.fromarray(far).save(folder / f"{number:05d}.png")
        _matrix(folder / f"{number:05d}.txt", np.linalg.inv(align) @ pose)
    for name in ("intrinsic.txt", "depth_intrinsic.txt"):
        _matrix(folder / name, camera)
    return folder


def write_scannetpp(clip: PosedClip, root: Path) -> Path:
    """data/SCENE/iphone under `root`; returns the scene's folder."""
    depth, camera, poses = _geometry(clip)
    phone = root / "data" / clip.scene_id / "iphone"
    for name in ("rgb", "depth"):
        (phone / name).mkdir(parents=True, exist_ok=True)
    entries = {}
    for number, image, far, pose in zip(clip.frame_ids.tolist(), clip.rgb, depth, poses):
        stem = f"frame_{number:06d}"
        Image.fromarray(image).save(phone / "rgb" / f"{stem}.jpg", quality=95)
        Image.fromarray(far).save(phone / "depth" / f"{stem}.png")
        entries[stem] = {"timestamp": number / 30, "aligned_pose": pose.tolist(), "intrinsic": camera.tolist()}
    write_json(phone / "pose_intrinsic_imu.json", entries)
    return phone.parent


def write_arkitscenes(clip: PosedClip, root: Path) -> Path:
    """Validation/VIDEO under `root` (raw layout), ten frames a second; returns the video's folder."""
    from scipy.spatial.transform import Rotation

    depth, camera, poses = _geometry(clip)
    folder = root / "Validation" / clip.scene_id
    for name in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines, (height, width) = [], clip.rgb.shape[1:3]
    pincam = f"{width} {height} {camera[0, 0]:.6f} {camera[1, 1]:.6f} {camera[0, 2]:.6f} {camera[1, 2]:.6f}\n"
    for number, image, far, pose in zip(clip.frame_ids.tolist(), clip.rgb, depth, poses):
        stem = f"{clip.scene_id}_{number / RATE:.3f}"
        Image.fromarray(image).save(folder / "lowres_wide" / f"{stem}.png")
        Image.fromarray(far).save(folder / "lowres_depth" / f"{stem}.png")
        write_text(folder / "lowres_wide_intrinsics" / f"{stem}.pincam", pincam)
        inverse = np.linalg.inv(pose)
        values = [number / RATE, *Rotation.from_matrix(inverse[:3, :3]).as_rotvec(), *inverse[:3, 3]]
        lines.append(" ".join(f"{value:.8f}" for value in values))
    write_text(folder / "lowres_wide.traj", "\n".join(lines) + "\n")
    return folder


LAYOUTS: dict[str, Callable[[PosedClip, Path], Path]] = {
    "scannet": write_scannet,
    "scannetpp": write_scannetpp,
    "arkitscenes": write_arkitscenes,
}
