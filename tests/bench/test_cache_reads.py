"""`vega-edge bench cache`: every way of reading gives the same frame, rates and errors are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vega_edge
from bench import cache as bench_cache
from teacher.cache import CacheWriter, FeatureCache
from teacher.storage import Int8, Storage
from vega_artifact import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return bench_cache.synthetic(tmp_path_factory.mktemp("bench") / "cache", "generative", 4, 3, (32, 6, 6))


def test_every_way_reads_the_frame_that_was_asked_for(made: FeatureCache) -> None:
    for scene, t in (("scene-00", 0), ("scene-03", 2)):
        expected = made.read(scene, "generative")[t]
        got = {name: way(scene, t) for name, way in bench_cache.readers(made, "generative").items()}
        for name in ("view", "read", "library"):
            np.testing.assert_array_equal(got[name], expected)
        assert not got["view"].flags.owndata and got["read"].flags.owndata
        assert got["touch"] == expected.reshape(-1).view(np.uint8)[:: bench_cache.PAGE].max()
        assert got["sum"] == np.bitwise_xor.reduce(expected.reshape(-1).view(np.uint64))


def test_rows_and_table(made: FeatureCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.json"
    line = f"bench cache {made.path} --seconds 0.02 --storages float16 int8 pca:8 --out {out}"
    assert vega_edge.main(line.split()) == 0
    said, result = capsys.readouterr().out, json.loads(out.read_text())
    assert result["record"] == 32 * 6 * 6 * 2 and result["frames"] == 12
    assert {(row["way"], row["threads"]) for row in result["reads"]} == {
        (way, count) for way in ("view", "touch", "sum", "copy", "read", "library") for count in (1, 2)
    }
    for row in result["reads"]:
        low, high = row["spread"]
        assert 0 < low <= row["frames_per_s"] <= high and row["way"] in said
        if row["gb_per_s"] is not None:
            assert row["gb_per_s"] == pytest.approx(row["frames_per_s"] * result["record"] / 1e9)
    by_form = {row["storage"]: row for row in result["storage"]}
    assert by_form["float16"]["error"] == 0 and by_form["float16"]["part"] == 1
    assert by_form["int8"]["error"] < 0.02 and by_form["int8"]["part"] == pytest.approx((36 + 8) / 72)
    assert by_form["pca:8"]["error"] > 0.5, "noise has no principal directions"
    assert by_form["pca:8"]["part"] == pytest.approx(8 / 32)


def test_errors_are_those_of_the_definition() -> None:
    maps = (np.random.default_rng(0).standard_normal((3, 16, 4, 4)) + 100).astype(np.float16)
    found = bench_cache.cost(Int8(), "x", [maps])
    other, given = Int8().roundtrip("x", maps).astype(np.float64), maps.astype(np.float64)
    assert found["error"] == pytest.approx(np.sqrt(np.square(other - given).mean() / np.square(given).mean()))
    assert found["centred_error"] == pytest.approx(found["error"] * 100, rel=0.1), "a big mean hides what is lost"
    assert bench_cache.cost(Storage(), "x", [maps])["centred_cosine"] == pytest.approx(1)


def test_a_reduced_cache_is_read_and_not_reduced_again(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, {}, {"teacher": "t"}, ["a"], 1, Int8())
    writer.add("a", {"generative": np.random.default_rng(0).standard_normal((2, 16, 5, 5)).astype(np.float16)})
    writer.finish()
    result = bench_cache.measure(tmp_path, "generative", [1], 0.01, ["int8"])
    assert [row["way"] for row in result["reads"]] == ["read"] and result["storage"] == []
    assert "stored as int8" in bench_cache.table(result)


def test_bad_input(made: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no stream 'fused'; it has generative"):
        bench_cache.measure(made.path, "fused", [1], 0.1, [])
    with pytest.raises(UserError, match="threads"):
        bench_cache.measure(made.path, "generative", [0], 0.1, [])
    with pytest.raises(UserError, match="unknown storage"):
        bench_cache.measure(made.path, "generative", [1], 0.01, ["int3"])
    with pytest.raises(UserError, match="no finished cache"):
        bench_cache.measure(tmp_path, "generative", [1], 0.1, [])
