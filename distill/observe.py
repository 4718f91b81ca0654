"""Looking at the student while it trains: validation cosines, probes and pictures, within a share of the time.

The weights looked at are those that would be shipped, in a copy of the student, so that training is not disturbed.

    python -m pytest tests/distill/test_observe.py -q
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.config import RunConfig
from distill.dataset import Frames
from distill.evaluate import validation_cosines
from distill.log import RunLog
from student import AnyStudent

QUICK_VALIDATION = 96  # frames of the validations on the way, at most
VALIDATION_SHARE = 0.05  # of the time between two of them that a validation may take; looking is a third of learning


@dataclass(frozen=True)
class Findings:
    """What probes found out about a student: numbers by name, and PNG pictures by name."""

    numbers: Mapping[str, float]
    pictures: Mapping[str, bytes] = field(default_factory=dict)


Probes = Callable[[AnyStudent], Findings]


def quick_frames(config: RunConfig) -> int:
    """How many frames a validation on the way looks at."""
    return min(QUICK_VALIDATION, max(1, int(3 * VALIDATION_SHARE * config.batch * config.evaluate_every)))


class Observer:
    """Asks a copy of the student how it is doing.

    Args:
        student: the copy, never trained.
        means: stream -> (C,) mean of the teacher's training tokens.
        ceilings: stream -> the centred cosine that the teacher's noise leaves room for; drawn beside the validation's.
        probes: further questions, given by whoever may ask them; they get the student in eval mode on its device.
    """

    def __init__(
        self,
        student: AnyStudent,
        validation: Frames,
        means: Mapping[str, Tensor],
        config: RunConfig,
        probes: Probes | None = None,
        ceilings: Mapping[str, float] | None = None,
    ) -> None:
        self.student, self.validation, self.means = student.eval(), validation, means
        self.ceilings = dict(ceilings or {})
        self.config, self.probes = config, probes
        self.spent = self.last = 0.0

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """What probes took before an interruption, from the run's log: a resumed run does not spend the time once more."""
        taken = [record["seconds"] for record in records if "probes" in record]
        self.spent, self.last = sum(taken), taken[-1] if taken else 0.0

    def look(self, weights: Mapping[str, Tensor], step: int, seconds: float, log: RunLog) -> float | None:
        """One validation on the way, and the probes if `seconds` of training so far leave room for them.

        Returns:
            the centred cosine of the stream with the largest weight; None without validation scenes.
        """
        self.student.load_state_dict(dict(weights))
        value = None
        if len(self.validation):
            found = self.validate(step, log, quick_frames(self.config))
            value = found[max(self.config.streams, key=lambda name: self.config.weights[name])]["centred"]
        room = self.spent + self.last <= self.config.probe_share * (seconds + self.spent)
        if self.probes is not None and room and step < self.config.steps:
            self.probe(step, log)
        return value

    def finish(self, weights: Mapping[str, Tensor], step: int, log: RunLog) -> dict[str, dict[str, float]]:
        """The last look, at all validation frames; returns their cosines ({} without validation scenes)."""
        self.student.load_state_dict(dict(weights))
        found = self.validate(step, log, None) if len(self.validation) else {}
        if self.probes is not None:
            self.probe(step, log)
        return found

    def validate(self, step: int, log: RunLog, limit: int | None) -> dict[str, dict[str, float]]:
        began = time.perf_counter()
        found = validation_cosines(self.student, self.validation, self.means, limit)
        ceilings = {name: {"ceiling": value} for name, value in self.ceilings.items()}
        told = {name: values | ceilings.get(name, {}) for name, values in found.items()}
        log.write({"step": step, "validation": told, "seconds": time.perf_counter() - began})
        return found

    def probe(self, step: int, log: RunLog) -> None:
        assert self.probes is not None
        began = time.perf_counter()
        with torch.random.fork_rng(), torch.no_grad():  # whatever they draw, training does not notice
            found = self.probes(self.student)
        self.last = time.perf_counter() - began
        self.spent += self.last
        record: dict[str, Any] = {"step": step, "probes": dict(found.numbers), "seconds": self.last}
        log.write(record)
        log.pictures(step, found.pictures)
