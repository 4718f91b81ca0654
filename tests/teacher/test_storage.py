"""Reduced storage: what is read is close to what was given, by bounds that follow from the form; all else is untouched."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from teacher.cache import CacheWriter, FeatureCache
from teacher.storage import BASIS, Int8, Pca, Storage, open_storage
from vega_artifact import UserError

CHANNELS, RANK = 24, 5
SCENES = ["a", "b", "c"]


def maps(seed: int, frames: int = 4) -> np.ndarray:
    """Features of a residual stream's kind: big channel means, few directions that vary, channels of very different scale."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((CHANNELS, RANK)) * np.logspace(-1, 1.5, CHANNELS)[:, None]
    mean = np.linspace(-300, 300, CHANNELS)[:, None, None]
    values = np.einsum("cr,trhw->tchw", directions, rng.standard_normal((frames, RANK, 7, 7)))
    return (values + mean).astype(np.float16)


def record(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "generative": maps(seed),
        "gate": rng.random((4, 1, 7, 7)).astype(np.float16),
        "rgb": rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8),
        "frame_ids": np.arange(4),
    }


def write(path: Path, storage: str) -> FeatureCache:
    form = open_storage(storage, path)
    writer = CacheWriter(path, {"storage": storage}, {"teacher": "t"}, SCENES, 2, form)
    writer.begin()
    form.prepare(lambda: (record(seed) for seed in range(len(SCENES))))
    for seed, scene in enumerate(SCENES):
        writer.add(scene, record(seed))
    writer.finish()
    return FeatureCache(path)


def size(path: Path) -> int:
    return sum(item.stat().st_size for item in path.glob("*.safetensors"))


@pytest.mark.parametrize("storage", ["float16", "int8", f"pca:{RANK}"])
def test_reading_does_not_show_the_storage(tmp_path: Path, storage: str) -> None:
    cache = write(tmp_path / "cache", storage)
    assert cache.streams == {"generative": (CHANNELS, 7, 7), "gate": (1, 7, 7)}
    cache = pickle.loads(pickle.dumps(cache))
    for seed, scene in enumerate(SCENES):
        given, found = record(seed), cache[scene]
        assert found.keys() == given.keys()
        for stream, array in given.items():
            assert found[stream].dtype == array.dtype and found[stream].shape == array.shape
            assert found[stream].flags.writeable
            np.testing.assert_array_equal(cache.frame(scene, 3, stream), found[stream][3])
            if stream != "generative" and not (stream == "gate" and storage == "int8"):
                np.testing.assert_array_equal(found[stream], array)
        np.testing.assert_array_equal(found["generative"], cache.storage.roundtrip("generative", given["generative"]))
    cache.verify()


def test_int8_is_off_by_half_a_step_at_most() -> None:
    given = maps(0)
    wide = given.astype(np.float64)
    step = np.ptp(wide, axis=(2, 3), keepdims=True) / 255
    error = np.abs(Int8().roundtrip("generative", given) - wide)
    assert (error <= step / 2 + np.abs(wide) * 2.0**-11 + 1e-6).all(), "half a step, and the rounding of float16"
    assert error.max() > step.min() / 4, "it does round"


def test_int8_keeps_what_is_constant_and_the_ends_of_the_range() -> None:
    given = np.zeros((1, 3, 4, 4), np.float16)
    given[0, 1], given[0, 2, 0, 0], given[0, 2, 3, 3] = 7.5, -65504, 65504
    found = Int8().roundtrip("x", given)
    np.testing.assert_array_equal(found[0, :2], given[0, :2])
    assert np.isfinite(found).all() and found[0, 2, 0, 0] == -65504 and abs(float(found[0, 2, 3, 3]) - 65504) <= 32


def test_pca_of_the_true_rank_gives_everything_back(tmp_path: Path) -> None:
    cache = write(tmp_path / "cache", f"pca:{RANK}")
    given, found = maps(1).astype(np.float64), cache.read("b", "generative").astype(np.float64)
    assert np.sqrt(np.square(found - given).mean()) / given.std(axis=(0, 2, 3)).mean() < 0.01
    fewer = write(tmp_path / "fewer", "pca:2").read("b", "generative").astype(np.float64)
    assert np.square(fewer - given).sum() > 100 * np.square(found - given).sum(), "fewer components lose something"


def test_what_it_saves(tmp_path: Path) -> None:
    plain, int8, pca = (write(tmp_path / name.replace(":", ""), name) for name in ("float16", "int8", "pca:5"))
    assert size(int8.path) < 0.75 * size(plain.path) and size(pca.path) < 0.5 * size(plain.path)
    for cache in (plain, int8, pca):
        promised = sum(
            cache.storage.nbytes(array.shape, array.dtype) if cache.storage.reduces(array.shape, array.dtype) else array.nbytes
            for seed in range(len(SCENES))
            for array in record(seed).values()
        )
        headers = size(cache.path) - promised - sum((cache.path / name).stat().st_size for name in cache.storage.files)
        assert 0 < headers < 3000, "the plan's bytes are those on disk but for the headers"


def test_no_view_of_what_is_not_there(tmp_path: Path) -> None:
    cache = write(tmp_path / "cache", "int8")
    assert cache.view("a", "rgb").shape == (4, 8, 8, 3)
    with pytest.raises(UserError, match=r"stream 'generative' is stored as int8; read it with `read` or `frame`"):
        cache.view("a", "generative")


def test_small_streams_stay_as_they_are(tmp_path: Path) -> None:
    assert not Pca(CHANNELS, tmp_path).reduces((4, CHANNELS, 7, 7), np.dtype(np.float16))
    assert not Int8().reduces((4, 1, 2, 2), np.dtype(np.float16)), "two float32 per channel would cost more than they save"
    assert not Storage().reduces((4, 99, 7, 7), np.dtype(np.float16))
    with pytest.raises(UserError, match="no stream has more channels than that"):
        write(tmp_path / "cache", f"pca:{CHANNELS}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int4", "unknown storage 'int4'.*Did you mean 'int8'.*pca:COMPONENTS"),
        ("pca", "a number of components expected"),
        ("pca:0", "a number of components expected"),
        ("pca:-3", "a number of components expected"),
        ("pca:many", "a number of components expected"),
    ],
)
def test_unknown_storage(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_storage(name, tmp_path)


def test_a_lost_or_foreign_basis_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    write(path, "pca:5")
    before = (path / BASIS).read_bytes()
    (path / BASIS).unlink()
    with pytest.raises(UserError, match=r"basis.safetensors: shard named in the manifest but missing; run the same extract"):
        FeatureCache(path).read("a", "generative")
    write(path, "pca:5")
    assert (path / BASIS).read_bytes() == before, "the advice works"
    form = open_storage("pca:5", path)
    form.fit(iter([record(77)]))
    with pytest.raises(UserError, match=r"stored with another basis \(basis\.safetensors"):
        write(path, "pca:5")
    (path / BASIS).write_bytes(before[:100])
    with pytest.raises(UserError, match=r"basis.safetensors: truncated or altered, 100 bytes"):
        FeatureCache(path).read("a", "generative")
