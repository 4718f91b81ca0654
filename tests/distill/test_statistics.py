"""Statistics are streamed once, kept with the cache, and made again when they do not fit or cannot be read."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import statistics
from distill.statistics import Moments, gather, stored_statistics
from teacher.cache import DERIVED, FeatureCache
from tests.distill.conftest import write_cache
from vega_artifact import UserError


@pytest.fixture
def own(tmp_path: Path) -> FeatureCache:
    """A cache that a test may write to."""
    return FeatureCache(write_cache(tmp_path / "cache", scenes=4))


def tokens_of(cache: FeatureCache, stream: str) -> torch.Tensor:
    maps = [torch.from_numpy(cache.read(scene, stream)).flatten(2).transpose(1, 2).flatten(0, 1) for scene in cache]
    return torch.cat(maps).double()


def test_golden_moments():
    """(0, 0), (4, 0), (0, 2), (4, 2): means 2 and 1, variances 4 and 1, no correlation, in any chunks."""
    tokens = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]])
    for chunks in ([tokens], list(tokens.split(1))):
        assert {k: v.tolist() for k, v in gather("variance", chunks).items()} == {"mean": [2, 1], "variance": [4, 1]}
        assert gather("covariance", chunks)["covariance"].tolist() == [[4, 0], [0, 1]]


def test_golden_token_spread():
    """Tokens (1, 3) and (0, 4) spread by 1 and 2 about their own mean; LayerNorm makes both (-1, 1)."""
    found = gather("tokens", [torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 4.0]])])
    assert found["mean"].tolist() == [0.5, 3.5]
    assert found["spread"].tolist() == pytest.approx([1.5, 1.5])
    assert found["normalised_mean"].tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_the_diagonal_alone_is_that_of_the_covariance():
    tokens = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * 3 + 100
    full, diagonal = Moments(), Moments(full=False)
    for chunk in tokens.split(64):
        full.update(chunk)
        diagonal.update(chunk)
    torch.testing.assert_close(diagonal.covariance, full.covariance.diagonal())


def test_statistics_of_a_cache_are_computed_once(own, monkeypatch):
    first = stored_statistics(own, "fused", own.scene_ids, "covariance")
    tokens = tokens_of(own, "fused")
    torch.testing.assert_close(first["mean"], tokens.mean(0))
    torch.testing.assert_close(first["covariance"], torch.cov(tokens.T, correction=0))
    monkeypatch.setattr(statistics, "gather", lambda *_: pytest.fail("computed again"))
    again = stored_statistics(FeatureCache(own.path), "fused", own.scene_ids, "covariance")
    assert all(torch.equal(again[name], value) for name, value in first.items()), "to the last bit"


def test_the_cache_stays_what_it_was(own):
    before = {item.name: item.read_bytes() for item in own.path.iterdir()}
    stored_statistics(own, "fused", own.scene_ids, "variance")
    after = {item.name: item.read_bytes() for item in own.path.iterdir() if item.is_file()}
    assert before == after and FeatureCache(own.path).fingerprint == own.fingerprint
    assert [item.suffix for item in (own.path / DERIVED).iterdir()] == [".safetensors"], "no lock, no half-written file"
    own.verify()


def test_other_scenes_streams_kinds_and_caches_have_statistics_of_their_own(own, tmp_path):
    wanted = [("fused", 4, "variance"), ("fused", 3, "variance"), ("semantic", 4, "variance"), ("fused", 4, "tokens")]
    means = [stored_statistics(own, stream, own.scene_ids[:count], kind)["mean"] for stream, count, kind in wanted]
    assert len(list((own.path / DERIVED).iterdir())) == 4 and not torch.equal(means[0], means[1])
    another = FeatureCache(write_cache(tmp_path / "another", scenes=4, seed=1))
    (own.path / DERIVED).rename(another.path / DERIVED)  # left by a cache that stood in this place before
    torch.testing.assert_close(
        stored_statistics(another, "fused", another.scene_ids, "variance")["mean"], tokens_of(another, "fused").mean(0)
    )


def test_a_file_that_was_cut_is_made_again(own):
    first = stored_statistics(own, "fused", own.scene_ids, "variance")
    (file,) = (own.path / DERIVED).iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    again = stored_statistics(own, "fused", own.scene_ids, "variance")
    assert torch.equal(again["variance"], first["variance"]) and file.stat().st_size % 8 == 0


def test_a_folder_that_cannot_be_written_to_is_left_alone(own, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = stored_statistics(own, "fused", own.scene_ids, "variance")
    torch.testing.assert_close(found["mean"], tokens_of(own, "fused").mean(0))
    assert not (own.path / DERIVED).exists()


def slow(path: Path) -> None:
    """Ask for derived arrays that take a while, and note that they were made here."""

    def make() -> dict[str, np.ndarray]:
        (path / f".made-{os.getpid()}").touch()
        multiprocessing.Event().wait(0.3)
        return {"value": np.arange(3.0)}

    assert FeatureCache(path).derived("slow", make)["value"].tolist() == [0, 1, 2]


def test_processes_that_ask_at_once_let_one_of_them_compute(own):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=slow, args=(own.path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and len(list(own.path.glob(".made-*"))) == 1


def test_tokens_that_are_not_finite_are_refused_and_not_kept(own, monkeypatch):
    monkeypatch.setattr(own, "read", lambda *_: np.full((2, 12, 2, 2), np.inf, dtype=np.float16))
    with pytest.raises(UserError, match="NaN or infinity among the tokens"):
        stored_statistics(own, "fused", own.scene_ids, "variance")
    assert not list((own.path / DERIVED).glob("*.safetensors"))
