"""Named runs: each a function that returns a `RunConfig`.

`vega-edge list recipes` shows them; a new one is a decorated function here.

    python -c "from distill import recipes; print(recipes.names(), recipes.create('demo'))"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distill.config import RunConfig
from vega_artifact import unknown_name

RECIPES: dict[str, Callable[[], RunConfig]] = {}


def register(recipe: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
    """Decorator: make a recipe known under the name of its function."""
    RECIPES[recipe.__name__] = recipe
    return recipe


def names() -> list[str]:
    return sorted(RECIPES)


def create(name: str) -> RunConfig:
    """The config of a recipe. Raises UserError listing the known names."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def summary(name: str) -> str:
    """First line of the recipe's docstring, for listings."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return (RECIPES[name].__doc__ or "").splitlines()[0]


@register
def demo() -> RunConfig:
    """vit_micro in 600 steps of 48 frames: about five minutes on two CPU cores.

    Loss on standardised targets, Muon 0.02 / AdamW 1e-3 are those of the project's feasibility prototype; more steps, and
    the generative stream at full weight: 400 steps smoothed away what tells neighbouring tokens apart (docs/log.md, 6). No
    change in docs/study.md that costs nothing is better and keeps the scale that readers need (docs/log.md, 18).
    """
    weights = {"fused": 1.0, "generative": 1.0, "semantic": 0.25}
    return RunConfig(student="vit_micro", steps=600, batch=48, weights=weights, evaluate_every=200, checkpoint_seconds=20.0)


@register
def first_demo() -> RunConfig:
    """What the first `make demo` trained: vit_micro in 400 steps of 48 frames; the mark to beat in `distill.contest`."""
    return RunConfig(student="vit_micro", steps=400, batch=48, evaluate_every=100, checkpoint_seconds=20.0)


@register
def smoke() -> RunConfig:
    """20 steps of 8 frames: does everything once, learns next to nothing; for tests."""
    return RunConfig(steps=20, batch=8, evaluate_every=10, log_every=5, checkpoint_seconds=5.0, progress=False)


@register
def vit_tiny() -> RunConfig:
    """ViT-Ti in 2,000 steps of 64 frames: about an hour on one CPU core; otherwise `demo`."""
    return replace(demo(), student="vit_tiny", steps=2000, batch=64, evaluate_every=250, log_every=20)


@register
def vit_small_gpu() -> RunConfig:
    """ViT-S on a GPU against full-size teacher streams: 20,000 steps of 256 frames at 224 px.

    AdamW 5e-4 at a batch of 1,536, scaled by the square root of the batch, and weight decay 0.04: lightly-train v3. Clip 1.0:
    DUNE. Half cosine, half smooth-L1: UNIC, DUNE. PHI-S targets: RADIO. Gram 0.5 within a frame: after DINOv3's anchor. EMA
    0.9998, 5 % warm-up.
    """
    return RunConfig(
        student="vit_small",
        image_size=(224, 224),
        normalizer="phi_s",
        gram=0.5,
        steps=20_000,
        batch=256,
        optimizer="adamw",
        learning_rate=5e-4,
        rate_scaling="sqrt",
        rate_batch=1536,
        ema=0.9998,
        evaluate_every=1000,
        log_every=50,
        checkpoint_seconds=300.0,
    )
