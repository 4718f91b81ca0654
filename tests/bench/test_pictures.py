"""Pictures and charts: what the colours promise, and refusals in words. All data is made up."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from bench import charts, pictures
from bench.correspondence import hit_credit
from bench.geometry import CellGeometry
from vega_artifact import UserError


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_pca_basis_is_the_teachers() -> None:
    teacher = np.random.default_rng(1).normal(size=(2, 16, 8, 8))
    maps = pictures.pca_maps(teacher, {"student": teacher.copy(), "student_undistilled": teacher[:, ::-1]})
    assert maps["student"] == maps["teacher"]
    assert maps["student_undistilled"] != maps["teacher"]
    assert pixels(maps["teacher"][0]).shape == (8, 8, 3)
    assert pixels(pictures.pca_maps(teacher, pixels=64)["teacher"][0]).shape == (64, 64, 3)
    with pytest.raises(UserError, match="12 channels"):
        pictures.pca_maps(teacher, {"student": teacher[:, :12]})


def test_shared_depth_scale_and_error() -> None:
    truth = np.tile(np.linspace(1, 5, 16, dtype=np.float32), (1, 16, 1))
    truth[0, 0, 0] = 0
    panel = pictures.depth_panel(truth, {"teacher": truth + 0, "raw_patches": np.full((1, 4, 4), 3.0)})
    same = pixels(panel["truth"][0]) == pixels(panel["teacher"][0])
    assert not same[0, 0].all() and same[1:].all()  # only the invalid pixel differs
    assert tuple(pixels(panel["truth"][0])[0, 0]) == pictures.INVALID
    assert pictures.depth_error(truth, truth) == 0
    assert pictures.depth_error(truth + 0.5, truth) == pytest.approx(0.5)
    with pytest.raises(UserError, match="no valid depth"):
        pictures.depth_panel(np.zeros((1, 4, 4)), {})


def geometry_of(middles: np.ndarray) -> CellGeometry:
    """Two views on a grid: each cell of view 0 asks view 1 for the cells within 0.5 m; (2, N, 3) metres."""
    right = np.linalg.norm(middles[0][:, None] - middles[1][None], axis=-1) <= 0.5
    asked = np.flatnonzero(right.any(axis=1))
    queries = np.stack([0 * asked, asked, 0 * asked + 1], axis=1)
    known = np.isfinite(middles).all(-1)
    flat = np.zeros(known.shape)
    return CellGeometry(flat, known, middles, queries, right[asked], known, np.ones(len(asked), bool), middles)


def test_matches_are_judged_by_geometry() -> None:
    rng = np.random.default_rng(2)
    features = np.repeat(rng.normal(size=(1, 32, 8, 8)), 2, axis=0)
    features[1] = np.roll(features[1], 1, axis=-1)  # view b looks one cell to the left
    rows, columns = np.mgrid[0:8, 0:8].astype(float)
    first = np.stack([columns, rows, 0 * rows], axis=-1)
    world = np.stack([first, np.roll(first, 1, axis=1)])
    world[0, 0, 0] = np.nan
    geometry = geometry_of(world.reshape(2, 64, 3))
    models = {"teacher": features, "raw_patches": rng.normal(size=features.shape)}
    matches = pictures.match_views(models, geometry, 0, 1, (128, 128))
    assert len(matches.points_a) == 63 and matches.hits["teacher"].all()
    assert matches.hits["raw_patches"].mean() < 0.2
    tokens = pictures.as_tokens(models["raw_patches"]).reshape(2, 64, 32)
    credit = hit_credit(tokens, geometry, tokens.mean(axis=(0, 1)))
    assert matches.hits["raw_patches"].sum() == credit.sum()  # the picture shows what the metric counts
    inner = matches.points_a[:, 0] < 112
    np.testing.assert_allclose(matches.found["teacher"][inner] - matches.points_a[inner], [[16, 0]] * inner.sum())
    with pytest.raises(UserError, match="share no visible surface"):
        pictures.match_views(models, geometry, 1, 0, (128, 128))
    with pytest.raises(UserError, match="64 cells"):
        pictures.match_views({"teacher": features[..., :4]}, geometry, 0, 1, (128, 128))


def test_lines_and_gates_use_the_promised_colours() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    point = np.array([[32.0, 32.0]])
    hit = pixels(pictures.correspondence_lines(grey, grey, point, point, np.array([True])))
    miss = pixels(pictures.correspondence_lines(grey, grey, point, point, np.array([False])))
    near = lambda image, colour: (np.abs(image - np.array(colour)).sum(axis=-1) < 12).sum()  # noqa: E731
    assert near(hit, pictures.HIT) > near(miss, pictures.MISS) > 300  # a dashed line has less ink
    assert near(hit, pictures.MISS) == 0 == near(miss, pictures.HIT)
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    assert tuple(pixels(pictures.gate_overlay(white, np.ones((1, 4, 4))))[4, 4]) == pictures.SEMANTIC
    assert tuple(pixels(pictures.gate_overlay(white, np.zeros((4, 4))))[4, 4]) == pictures.GENERATIVE


def test_charts_refuse_empty_input_and_draw_the_smallest_batch() -> None:
    probes = [{"model": "student_exported", "metric": "depth_r2", "value": 0.7, "low": 0.6, "high": 0.8, "scenes": 40}]
    timed = {"model": "student_exported", "backend": "onnxruntime", "precision": "fp32", "size": [128, 128], "n": 9}
    latency = [{**timed, "batch": batch, "p50_ms": ms, "p90_ms": ms, "p99_ms": ms} for batch, ms in ((8, 24.0), (1, 4.0))]
    with pytest.raises(UserError, match="no row with step and loss"):
        charts.curves([{"step": 1}])
    with pytest.raises(UserError, match="no model has both"):
        charts.latency_quality(latency, [])
    assert [row["batch"] for row in charts.smallest_batches(latency)] == [1]
    picture = charts.latency_quality(latency, probes)
    assert pixels(picture).shape[1] > 800
    assert picture == charts.latency_quality(latency, probes)


def test_curves_need_no_cosine_and_find_nested_ones() -> None:
    plain = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(5)]
    nested = [{**row, "cosine": {"fused": 0.5}} for row in plain]
    assert pixels(charts.curves(nested)).shape[0] > 1.5 * pixels(charts.curves(plain)).shape[0]  # a second panel
    validated = [*nested, {"step": 4, "validation": {"fused": {"raw": 0.9, "centred": 0.8}}}]
    assert charts.curves(validated) != charts.curves(nested)
    assert charts.label("validation fused centred") == "fused, validation (centred)"
    assert charts.label("cosine fused") == "fused"
    ceiled = [*nested, {"step": 4, "validation": {"fused": {"raw": 0.9, "centred": 0.8, "ceiling": 0.95}}}]
    assert charts.curves(ceiled) != charts.curves(validated)
    assert charts.kind_of("validation fused ceiling") == "ceiling"
    assert charts.label("validation fused ceiling") == "fused, ceiling"
