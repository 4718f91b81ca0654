"""VEGA-3D's claims recomputed: the correspondence score by both published definitions, and NOS to the printed digits."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import vega_edge
from bench import nos
from bench.consistency import adjacent_pairs, all_pairs, published_positions
from bench.correspondence import unit
from bench.geometry import CellGeometry
from bench.nos import Table
from teacher.scenes.clip import PosedClip
from vega_artifact import UserError, read_json, write_json

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bench" / "feature_probes.json").read_text())
# As printed: teacher -> per group, one global minimum and maximum.
PRINTED = {
    "V-JEPA v2": (77.54, 61.82),
    "DINOv3-L": (61.63, 51.84),
    "VGGT": (88.24, 71.48),
    "SVD": (52.06, 55.62),
    "SD 2.1": (70.57, 71.90),
    "Vmem": (63.75, 66.15),
    "SEVA": (75.28, 77.00),
    "SD VAE": (77.29, 77.49),
    "WAN-VACE": (89.32, 90.04),
    "WAN-T2V": (82.41, 83.25),
}


@pytest.fixture(scope="module")
def summary() -> dict:
    return nos.summarise(Table.read())


# NOS


def test_every_printed_score(summary: dict) -> None:
    found = {row["model"]: row for row in summary["rows"] if row["model"] != "baseline"}
    rounded = {name: (round(row["nos_group"], 2), round(row["nos_global"], 2)) for name, row in found.items()}
    assert rounded == PRINTED
    baselines = {row["group"]: row for row in summary["rows"] if row["model"] == "baseline"}
    assert round(baselines["discriminative"]["nos_group"], 2) == 13.58
    assert round(baselines["generative"]["nos_group"], 2) == 12.22
    assert {round(row["nos_global"], 2) for row in baselines.values()} == {13.61}


def test_every_printed_correlation(summary: dict) -> None:
    found = {row["against"]: row for row in summary["correlations"]}
    assert {row["n"] for row in found.values()} == {10}
    assert (round(found["nos_group"]["pearson"], 2), round(found["nos_group"]["spearman"], 2)) == (0.77, 0.85)
    assert (round(found["nos_global"]["pearson"], 2), round(found["nos_global"]["spearman"], 2)) == (0.64, 0.81)
    single = found["scanrefer_acc50"]
    assert (round(single["spearman"], 2), round(single["spearman_p"], 2)) == (0.62, 0.06)


def test_nos_by_hand() -> None:
    assert nos.nos({"a": (0.0, 10.0, 5.0), "b": (1.0, 20.0, 5.0), "c": (0.5, 10.0, 5.0)}) == {"a": 0.0, "b": 100.0, "c": 25.0}
    with pytest.raises(UserError, match="NOS: a, b are equal in every metric; at least two different rows are needed"):
        nos.nos({"a": (1.0,), "b": (1.0,)})


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_json(nos.PAPER)
    data["groups"], data["correspondence"] = {"all": list(PRINTED)}, {"SVD": 17.95, "VGGT": 77.21}
    write_json(tmp_path / "table.json", data)
    assert vega_edge.main(["bench", "nos", str(tmp_path / "table.json"), "--out", str(tmp_path / "nos.json")]) == 0
    shown = capsys.readouterr().out
    assert "WAN-VACE        all                     -       90.04        90.04" in shown and "Pearson" not in shown
    assert read_json(tmp_path / "nos.json")["correlations"] == []  # two scores make no correlation
    assert vega_edge.main(["bench", "nos"]) == 0
    assert "nos_group                    0.77" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["one"]}, r"results of '.*': 1 finite numbers expected"),
        ({"baseline": "nobody"}, r"every row of results but the baseline 'nobody' must be in exactly one group"),
        ({"groups": {"some": ["SVD", "SVD"]}}, r"must be in exactly one group"),
        ({"results": {"baseline": ["x"]}}, r"a list, object or number is missing"),
        ({"correspondence": {"Sora": 1}}, r"correspondence names Sora, which no group holds"),
        ({"colour": "red"}, r"an object with exactly source, metrics, .* expected .*, found .*colour"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    write_json(tmp_path / "table.json", read_json(nos.PAPER) | change)
    with pytest.raises(UserError, match=f"table.json: .*{message}"):
        Table.read(tmp_path / "table.json")


# the correspondence score


def views(seed: int = 0, count: int = 4, cells: int = 60, channels: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, positions within a few voxels of one another, and which are valid."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, cells, channels)).astype(np.float32) + 0.5
    return tokens, rng.uniform(0, 0.35, (count, cells, 3)).astype(np.float32), rng.random((count, cells)) > 0.2


def by_loops(
    tokens: np.ndarray, xyz: np.ndarray, valid: np.ndarray, centre: np.ndarray | None
) -> tuple[list[float], list[float]]:
    """The paper's definition said again as slowly as it reads: cosines within a voxel, and of any two prototypes."""
    origin = xyz[valid].min(0)
    held: dict[tuple[int, ...], dict[int, list[np.ndarray]]] = {}
    for view, cell in zip(*np.nonzero(valid)):
        voxel = tuple(np.floor((xyz[view, cell] - origin) / np.float32(0.1)).astype(int))
        held.setdefault(voxel, {}).setdefault(int(view), []).append(tokens[view, cell] - (0 if centre is None else centre))
    prototypes = [(voxel, view, np.mean(found, axis=0)) for voxel, seen in held.items() for view, found in seen.items()]
    same, different = [], []
    for (voxel_a, view_a, a), (voxel_b, view_b, b) in combinations(prototypes, 2):
        if view_a != view_b:
            cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            different.append(cosine)
            if voxel_a == voxel_b:
                same.append(cosine)
    return same, different


@pytest.mark.parametrize("centred", [False, True])
def test_all_pairs_is_the_papers_definition(centred: bool) -> None:
    tokens, xyz, valid = views()
    centre = tokens.mean((0, 1)) if centred else None
    same, different = by_loops(tokens, xyz, valid, centre)
    found = all_pairs(tokens, xyz, valid, centre)
    assert found[:, 1].tolist() == [len(same), len(different)] and len(same) > 50
    assert found[:, 0] == pytest.approx([sum(same), sum(different)], rel=1e-4, abs=1e-2)


def test_both_definitions_agree_with_the_golden_pair() -> None:
    case = GOLDEN["voxel_correspondence"][0]
    tokens, xyz = (
        np.stack([np.array(case[f"{name}_{view}"], dtype=np.float32).reshape(196, -1) for view in "ij"])
        for name in ("feat", "xyz")
    )
    valid = np.stack([np.array(case[f"valid_{view}"]).reshape(196).astype(bool) for view in "ij"])
    adjacent = adjacent_pairs(tokens, xyz, valid, voxel=case["voxel_size"])
    assert adjacent[0] == pytest.approx([case["expected"]["score"], 1], abs=1e-5)
    total, pairs = all_pairs(unit(tokens), xyz, valid, voxel=case["voxel_size"])[0]  # of two views there is but one pair
    assert total / pairs == pytest.approx(case["expected"]["score"], abs=1e-5)
    assert pairs == case["expected"]["num_voxels_with_pairs"]


def test_only_adjacent_frames_count_in_the_released_definition_and_all_in_the_papers() -> None:
    xyz, valid = np.zeros((3, 1, 3), np.float32), np.ones((3, 1), bool)
    tokens = np.array([[[1, 0]], [[0, 1]], [[1, 0]]], dtype=np.float32)  # first and last alike, the middle one not
    assert adjacent_pairs(tokens, xyz, valid)[0].tolist() == [0, 1]
    assert all_pairs(tokens, xyz, valid)[0].tolist() == pytest.approx([1, 3])


@pytest.mark.parametrize(("times", "expected"), [(3, 0.900), (6, 0.973)])
def test_a_shared_mean_makes_strangers_agree_until_it_is_taken_off(times: int, expected: float) -> None:
    rng = np.random.default_rng(times)
    noise = rng.normal(size=(2, 400, 1536)).astype(np.float32)
    direction = rng.normal(size=1536)
    tokens = noise + (times * np.sqrt(1536) * direction / np.linalg.norm(direction)).astype(np.float32)
    xyz = np.repeat(np.arange(400)[:, None], 3, axis=1)[None].repeat(2, 0).astype(np.float32)
    valid = np.ones((2, 400), bool)
    for measure in (all_pairs, adjacent_pairs):
        raw, control = (row[0] / row[1] for row in measure(tokens, xyz, valid))
        centred = measure(tokens, xyz, valid, tokens.mean((0, 1)))[0]
        assert raw == pytest.approx(expected, abs=2e-3) and control == pytest.approx(expected, abs=2e-3)
        assert centred[0] / centred[1] == pytest.approx(0, abs=0.02)


def test_nothing_to_compare_is_no_score() -> None:
    tokens, xyz, valid = views()
    apart = xyz + 100 * np.arange(len(xyz), dtype=np.float32)[:, None, None]
    for positions, seen in ((apart, valid), (xyz, np.zeros_like(valid)), (xyz[:1], valid[:1])):
        assert all_pairs(tokens[: len(positions)], positions, seen).tolist() == [[0, 0], [0, 0]]
        assert adjacent_pairs(tokens[: len(positions)], positions, seen).tolist() == [[0, 0], [0, 0]]
    assert np.isfinite(all_pairs(np.zeros_like(tokens), xyz, valid)).all()


def test_published_positions_take_pixels_without_depth_in_and_ours_leave_them_out() -> None:
    pose = np.eye(4)[None].copy()
    pose[0, :3, 3] = (5.0, 0.0, 0.0)
    depth = np.full((1, 8, 8), 2.0, np.float32)
    depth[0, :2, :4] = 0  # half of the upper left cell
    depth[0, 4:, 4:] = 0
    depth[0, 4, 4] = 2.0  # one pixel of sixteen: less than a tenth
    camera = np.array([[8.0, 0, 4], [0, 8.0, 4], [0, 0, 1]])
    clip = PosedClip("s", np.zeros((1, 8, 8, 3), np.uint8), depth, camera, pose, np.arange(1))
    xyz, valid = published_positions(clip, 2, 2)
    ours = CellGeometry.of(clip, 2, 2)
    assert valid.tolist() == ours.valid.tolist() == [[True, True, True, False]]
    assert xyz[0, 1] == pytest.approx(ours.mean_xyz[0, 1], abs=1e-6)
    assert ours.mean_xyz[0, 0, 2] == pytest.approx(2.0)
    assert xyz[0, 0] == pytest.approx((ours.mean_xyz[0, 0] + pose[0, :3, 3]) / 2, abs=1e-6)  # half way to the camera
    assert published_positions(clip, 3, 3)[0].shape == (1, 9, 3)  # bins that overlap
