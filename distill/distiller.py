"""Student and objective as one module, so that wrapping it for several processes covers both.

What `distill.train` runs forward and backward, and what `vega-edge bench train` measures the loop against.

    python -m pytest tests/distill/test_guard.py -q
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.losses import NO_HINTS, Hints, Objective
from student import AnyStudent, StudentModel

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Distiller(nn.Module):
    """forward(images (B, 3, H, W), targets {stream: (B, N, C)} normalised, hints) -> total loss, and float32
    (1 + 2 * streams + terms,): total, the loss of each stream, the cosine of each stream, then `Objective.term_means`.

    A student with memory takes the B frames as windows of `window` consecutive ones.
    """

    def __init__(self, student: AnyStudent, objective: Objective, precision: str, window: int = 1) -> None:
        super().__init__()
        self.student = student
        self.window = window
        self.objective = objective
        self.precision = precision

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised answers {stream: (B, N, C)} in the precision of the run."""
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            if isinstance(self.student, StudentModel):
                return self.student.normalised(images)
            found = self.student.normalised(images.unflatten(0, (-1, self.window)))
        return {name: value.flatten(0, 1) for name, value in found.items()}

    def forward(self, images: Tensor, targets: Mapping[str, Tensor], hints: Hints = NO_HINTS) -> tuple[Tensor, Tensor]:
        total, parts = self.objective(self.predict(images), targets, hints)
        scalars = [total, *(part.loss for part in parts.values()), *(part.cosine for part in parts.values())]
        scalars += self.objective.term_means(parts).values()
        return total, torch.stack([scalar.detach().float() for scalar in scalars])
