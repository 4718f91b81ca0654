"""How much noise a diffusion model is shown: the three families of noise schedules and their own meaning of sigma.

Sigma is always the factor on the noise in the model's own equation; the timestep is what the network is told. The library's
schedulers start from a number of sampling steps, which is how the reference came to noise its rivals by accident
(SD 2.1 at timestep 1, SVD at sigma 700; spec/vega3d.md 3.3), so here sigma is given and the timestep follows.

    python -c "from teacher.rivals.schedules import FlowMatching; print(FlowMatching(0.3).timestep)"
"""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor

from vega_artifact import UserError

TRAIN_STEPS = 1000


class Schedule(Protocol):
    """Attributes: sigma, really used; timestep, an integer, or a float where the model's time is continuous."""

    sigma: float
    timestep: Any

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        """What the network receives, float32, for clean latents and noise of one shape."""
        ...


class VariancePreserving:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at the training timestep whose noise factor is nearest to sigma.

    Args:
        alphas_cumprod: (steps,) abar of the model's own training schedule.
        sigma: in [0, 1]; 0.5711 is t = 250 in Stable Diffusion.
    """

    def __init__(self, alphas_cumprod: Tensor, sigma: float) -> None:
        _require(sigma, 0, 1)
        factors = (1 - alphas_cumprod.double()).clamp(min=0).sqrt()
        self.timestep = int((factors - sigma).abs().argmin())
        self.sigma = float(factors[self.timestep])
        self.alpha = math.sqrt(float(alphas_cumprod[self.timestep]))

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        return self.alpha * latents.float() + self.sigma * noise.float()


class FlowMatching:
    """x_t = (1 - sigma) x_0 + sigma eps; sigma in [0, 1] is rounded to the 1000 training steps, timestep = 1000 sigma."""

    def __init__(self, sigma: float) -> None:
        _require(sigma, 0, 1)
        self.timestep = round(TRAIN_STEPS * sigma)
        self.sigma = self.timestep / TRAIN_STEPS

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        return (1 - self.sigma) * latents.float() + self.sigma * noise.float()


class VarianceExploding:
    """(x_0 + sigma eps) / sqrt(1 + sigma^2), timestep = ln(sigma) / 4 (EDM, arXiv 2206.00364, with unit data variance).

    Args:
        sigma: in [lowest, highest], the range the model was trained on; continuous, so it is taken as it is.
    """

    def __init__(self, sigma: float, lowest: float = 0.002, highest: float = 700.0) -> None:
        _require(sigma, lowest, highest)
        self.sigma, self.timestep = float(sigma), math.log(sigma) / 4

    def noised(self, latents: Tensor, noise: Tensor) -> Tensor:
        return (latents.float() + self.sigma * noise.float()) / math.sqrt(1 + self.sigma**2)


def _require(sigma: float, lowest: float, highest: float) -> None:
    if not lowest <= sigma <= highest:
        raise UserError(f"sigma {sigma}: a noise factor in [{lowest}, {highest}] expected for this model")


def flow_equivalent(sigma: float) -> float:
    """The variance-preserving sigma with the signal-to-noise ratio of a flow model's sigma: 0.3 -> 0.3939."""
    return sigma / math.hypot(sigma, 1 - sigma)
