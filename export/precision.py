"""Precision lives in the graph, is measured on frames never calibrated on, and is recommended by a rule that says why.

Applied by `export.onnx` after the fp32 graph is made; `export.variants` compares all of them.

    vega-edge export RUN --out EXPORT --precision all --cache CACHE
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from export.audit import Ranges
from export.fp8 import to_fp8
from export.fp16 import islands, to_half
from export.int8 import count_quantized, to_int8
from export.parity import Streams, difference
from vega_artifact import UserError

PRECISIONS = ("fp32", "fp16")  # need no calibration
QUANTIZED = ("int8", "int8_fp16")  # the layers with weights in INT8, all else in float32 (for CPUs) or in half (for TensorRT)
VARIANTS = (*PRECISIONS, *QUANTIZED)  # what `all` means
FP8 = "fp8_fp16"  # as int8_fp16 with E4M3 in place of integers, on request: only Thor and newer workstations run it
CALIBRATED = (*QUANTIZED, FP8)
KNOWN = (*VARIANTS, FP8)
LEAST_COSINE = 0.995
PROBE_MARGIN = 0.01
LEAST_GAIN = 1.1  # an INT8 graph must be this much faster than the best other one to be worth its calibration

Probes = Mapping[str, Callable[[Streams], float]]


def typed(model: onnx.ModelProto, precision: str, ranges: Ranges, nodes: list[str]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A variant of an fp32 graph and the facts about it for the manifest.

    Args:
        precision: one of `KNOWN`. ranges: measured on `model`. nodes: layers with weights, for INT8.

    Raises:
        UserError: the graph cannot have this precision.
    """
    facts: dict[str, Any] = {}
    if precision in CALIBRATED:
        exact, model = model, to_int8(model, ranges, nodes)
        facts["quantized"] = count_quantized(model) | {"layers": len(nodes)}
        if precision == FP8:
            model = to_fp8(model, exact)
    if precision in ("fp16", "int8_fp16", FP8):
        keep = islands(model, ranges)
        model = to_half(model, keep)
        facts["float32_islands"] = keep
    return model, facts


def score(reference: Streams, found: Streams, probes: Probes | None = None) -> dict[str, Any]:
    """How good a variant's streams (B, N, C) are: distances per output, and what every probe says about both.

    Args:
        probes: name -> streams to a number where more is better; of the frames both streams come from.
    """
    streams = {name: difference(value, found[name]) for name, value in reference.items()}
    verdicts = {name: {"fp32": float(probe(reference)), "found": float(probe(found))} for name, probe in (probes or {}).items()}
    return {"streams": streams, "probes": verdicts}


@dataclass(frozen=True)
class Variant:
    """A variant as the rule sees it.

    Attributes:
        cosine: mean over tokens, of the worst output. drops: probe -> how much worse than fp32.
        milliseconds: measured on the target; None where nobody has.
        unequal: downstream tasks at which it is not shown to be as good as fp32.
    """

    precision: str
    cosine: float
    drops: Mapping[str, float] = field(default_factory=dict)
    milliseconds: float | None = None
    unequal: Sequence[str] = ()

    def refusal(self) -> str | None:
        """Why the quality is outside the margin; None where it is inside."""
        if not self.cosine >= LEAST_COSINE:
            return f"{self.precision}: cosine {self.cosine:.4f} is below {LEAST_COSINE}"
        worst = max(self.drops, key=lambda name: self.drops[name], default=None)
        if worst is not None and not self.drops[worst] <= PROBE_MARGIN:
            return f"{self.precision}: {worst} drops by {self.drops[worst]:.3f}, {PROBE_MARGIN} allowed"
        if self.unequal:
            return f"{self.precision}: not shown to be as good as fp32 on {', '.join(self.unequal)}"
        return None


def as_variant(precision: str, scored: Mapping[str, Any], milliseconds: float | None = None) -> Variant:
    """From what `score` returned to what `recommend` takes."""
    cosine = min(record["cosine"] for record in scored["streams"].values())
    drops = {name: record["fp32"] - record["found"] for name, record in scored["probes"].items()}
    return Variant(precision, cosine, drops, milliseconds)


def recommend(variants: Sequence[Variant]) -> dict[str, str]:
    """Quality within the margin first, then speed: {"precision", "why"}.

    INT8 has to be `LEAST_GAIN` times as fast as the fastest other one. Where nothing was timed (a device that is not here) fp16
    is taken before fp32: its gain is certain there, that of INT8 over it is not (1.15x on an Orin Nano).

    Raises:
        UserError: no variant is within the margin.
    """
    refused = [text for variant in variants if (text := variant.refusal())]
    allowed = [variant for variant in variants if variant.refusal() is None]
    if not allowed:
        raise UserError(f"no precision keeps the quality ({'; '.join(refused)}); train the student longer or export fp32")
    beside = f"; {'; '.join(refused)}" if refused else ""
    plain = [variant for variant in allowed if variant.precision in PRECISIONS] or allowed
    if any(variant.milliseconds is None for variant in allowed):
        best = max(plain, key=lambda variant: variant.precision == "fp16")
        why = f"within the margin (cosine {best.cosine:.5f}) and not timed on the target: INT8 has to show its gain there first"
        return {"precision": best.precision, "why": why + beside}
    fastest, safest = (min(group, key=lambda variant: variant.milliseconds or 0.0) for group in (allowed, plain))
    gain = (safest.milliseconds or 0.0) / max(fastest.milliseconds or 0.0, 1e-9)
    best = fastest if gain >= LEAST_GAIN else safest
    why = f"the fastest within the margin (cosine {best.cosine:.5f}, {best.milliseconds:.2f} ms)"
    if best is not fastest:
        why += f"; {fastest.precision} is only {gain:.2f}x as fast, {LEAST_GAIN}x asked for"
    return {"precision": best.precision, "why": why + beside}
