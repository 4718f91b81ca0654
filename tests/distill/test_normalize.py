"""Normalisers: statistics, round trips, Hadamard matrices."""

import pytest
import torch

from distill.normalize import LayerNormalizer, estimate, estimate_from, hadamard
from distill.statistics import Moments
from vega_artifact import UserError


@pytest.fixture
def tokens() -> torch.Tensor:
    """(4000, 12) float32, correlated, far from zero, channel spreads from 0.3 to 6."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4000, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    return mixed * torch.linspace(0.1, 2, 12) + torch.linspace(-50, 50, 12)


def test_streamed_moments_equal_those_of_the_whole(tokens):
    moments = Moments()
    for chunk in tokens.half().split(333):
        moments.update(chunk)
    whole = tokens.half().double()
    torch.testing.assert_close(moments.mean, whole.mean(0), rtol=1e-12, atol=1e-10)
    torch.testing.assert_close(moments.covariance, torch.cov(whole.T, correction=0), rtol=1e-9, atol=1e-9)


def test_moments_survive_a_mean_a_million_times_the_spread():
    tokens = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1e6
    moments = Moments()
    for chunk in tokens.split(100):
        moments.update(chunk)
    torch.testing.assert_close(moments.covariance, torch.cov(tokens.T, correction=0), rtol=1e-9, atol=1e-12)


GOLDEN = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]])  # means 2 and 1, variances 4 and 1, uncorrelated


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", [4.0, 2.0]),
        ("standardize", [1.0, 1.0]),
        ("layernorm", [1.0, -1.0]),
        # the largest distance from the mean, sqrt(5), goes along one new axis or is shared by both; alpha = sqrt(2.5)
        ("phi_s", [3 / 5**0.5, 1 / 5**0.5]),
    ],
)
def test_golden_numbers(kind, expected):
    """The token (4, 2), 2 and 1 away from the mean; eigenvectors and Hadamard rows have no sign or order of their own."""
    found = estimate(kind, [GOLDEN]).normalize(GOLDEN[3])
    found = found.abs().sort(descending=True).values if kind == "phi_s" else found
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["none", "standardize", "phi_s", "layernorm"])
def test_gradients(kind, tokens):
    normalizer = estimate(kind, tokens.split(500)).to(torch.float64)
    few = tokens[:3].double().requires_grad_()
    assert torch.autograd.gradcheck(normalizer.normalize, (few,))
    assert torch.autograd.gradcheck(lambda values: normalizer.denormalize(values), (few,))


@pytest.mark.parametrize("kind", ["standardize", "phi_s", "none"])
def test_round_trip(kind, tokens):
    normalizer = estimate(kind, tokens.split(500))
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(tokens)), tokens, atol=2e-4, rtol=1e-5)


def test_standardize_gives_unit_channels(tokens):
    normalised = estimate("standardize", tokens.split(500)).normalize(tokens)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(0), torch.ones(12), atol=1e-3, rtol=0)


def test_standardize_does_not_blow_up_a_dead_channel(tokens):
    tokens[:, 3] = 7.0
    normalised = estimate("standardize", [tokens]).normalize(tokens)
    assert normalised[:, 3].abs().max() < 1e-3 and torch.isfinite(normalised).all()


def test_phi_s_gives_equal_variances_by_a_rotation_and_one_scalar(tokens):
    normalizer = estimate("phi_s", tokens.split(500))
    normalised = normalizer.normalize(tokens)
    assert normalizer.kind == "full"
    torch.testing.assert_close(normalised.var(0, correction=0), torch.ones(12), atol=1e-3, rtol=0)
    gram = normalizer.forward @ normalizer.forward.T
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(12), atol=1e-5, rtol=0)
    distances, before = torch.cdist(normalised[:50], normalised[:50]), torch.cdist(tokens[:50], tokens[:50])
    ratio = (distances / before)[~torch.eye(50, dtype=bool)]
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=2e-3, atol=0)


def test_layernorm_is_exact_with_the_tokens_statistics_and_unbiased_without(tokens):
    normalizer = estimate("layernorm", tokens.split(500))
    assert isinstance(normalizer, LayerNormalizer)
    normalised = normalizer.normalize(tokens)
    torch.testing.assert_close(normalised.mean(-1), torch.zeros(len(tokens)), atol=1e-5, rtol=0)
    exact = normalizer.denormalize(normalised, normalizer.statistics(tokens))
    torch.testing.assert_close(exact, tokens, atol=1e-4, rtol=1e-5)
    typical = normalizer.denormalize(normalised)
    torch.testing.assert_close(typical.mean(0), tokens.mean(0), atol=1e-3, rtol=1e-4)
    assert (typical - tokens).square().mean() < 0.5 * tokens.var(0).mean(), "the typical inverse keeps most of the token"


@pytest.mark.parametrize("kind", ["standardize", "phi_s", "layernorm", "none"])
def test_a_stream_of_a_cache_is_normalised_by_its_training_scenes(kind, cache):
    scenes = cache.scene_ids[:6]
    parts = [torch.from_numpy(cache.read(scene, "fused")).flatten(2).transpose(1, 2).flatten(0, 1) for scene in scenes]
    normalizer, mean = estimate_from(cache, "fused", scenes, kind)
    probe = parts[0].float()
    torch.testing.assert_close(normalizer.normalize(probe), estimate(kind, parts).normalize(probe), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mean, torch.cat(parts).double().mean(0).float())


def test_the_gate_is_standardised_where_a_token_has_no_spread_of_its_own(cache):
    normalizer, _ = estimate_from(cache, "gate", cache.scene_ids, "layernorm")
    gate = torch.from_numpy(cache.read(cache.scene_ids[0], "gate")).flatten(2).transpose(1, 2)
    assert normalizer.normalize(gate).std() > 0.5 and normalizer.kind == "diagonal"
    torch.testing.assert_close(normalizer.denormalize(normalizer.normalize(gate)), gate.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 128, 192, 768, 1152, 1536])
def test_hadamard_is_orthogonal_with_equal_entries(size):
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_failures_say_what_to_do(tokens):
    with pytest.raises(UserError, match="no Hadamard matrix for 7 channels"):
        estimate("phi_s", [tokens[:, :7]])
    with pytest.raises(UserError, match="unknown normalizer 'whiten'.*phi_s"):
        estimate("whiten", [tokens])
    for kind in ("standardize", "layernorm"):
        with pytest.raises(UserError, match="no tokens to estimate from"):
            estimate(kind, [])
