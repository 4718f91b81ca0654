"""How fast and how exact the teacher is: ours against the reference recipe, taking turns in one process.

A leaf of the chain: nothing is read and no weights are needed, the true 1.3B widths are filled at random. Ratios are those of
medians of alternating calls in one process, so that a busy machine slows both; both work on the same weights and inputs.

    vega-edge bench teacher --quick
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from bench.latency import machine
from bench.peak import GIB, PeakMemory
from bench.reference import GRID, WAN_1_3B, ReferenceRecipe, random_wan
from teacher.features import Teacher, TeacherConfig
from vega_artifact import UserError, tool_versions

SIDES = ("reference", "ours")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured; the defaults are the true depth at a size a CPU can bear.

    Attributes:
        layers, block: depth of the transformer and the block whose output is wanted; the rest of the depth is what we save.
        size: (H, W) of the frames; frames: how many; repeats: timed rounds.
        dtype: "float32", or "bfloat16": bfloat16 weights against float32 weights under autocast.
    """

    layers: int = 30
    block: int = 20
    size: tuple[int, int] = (240, 416)
    frames: int = 2
    repeats: int = 3
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False

    def __post_init__(self) -> None:
        if min(self.frames, self.repeats) < 1:
            raise UserError(f"bench teacher: frames {self.frames} and repeats {self.repeats} must both be at least 1")
        if any(side < 16 or side % 16 for side in self.size):
            raise UserError(f"bench teacher: size {self.size}: two multiples of 16 expected")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"bench teacher: dtype {self.dtype!r}: float32 or bfloat16 expected")


def quick(settings: Settings) -> Settings:
    """A third of the depth at the true width, the wanted block at the same 21/30 of it: minutes instead of a coffee break."""
    return replace(settings, layers=10, block=6, frames=min(settings.frames, 2), repeats=min(settings.repeats, 2))


@dataclass
class Part:
    """One step that both sides do: how, and what every call took."""

    name: str
    work: dict[str, Callable[[], Tensor]]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {side: [] for side in SIDES})
    peak: dict[str, int | None] = field(default_factory=dict)
    difference: float = 0.0

    def warm_up(self, device: torch.device) -> dict[str, Tensor]:
        """One untimed call each: peak memory, and how far the results, which are returned, differ."""
        results = {}
        for side in SIDES:
            with PeakMemory(device) as memory:
                results[side] = self.work[side]()
            self.peak[side] = memory.bytes
        self.difference = relative(results["ours"], results["reference"])
        return results

    def run(self, side: str, device: torch.device) -> None:
        synchronise(device)
        began = time.perf_counter()
        self.work[side]()
        synchronise(device)
        self.seconds[side].append(time.perf_counter() - began)


def measure(settings: Settings) -> dict[str, Any]:
    """Build both sides on the same random weights and time them in turns.

    Returns:
        {"rows": [{part, reference_s, ours_s, ratio, ratio_range, reference_peak_gib, ours_peak_gib, difference}] for "vae",
        "dit" and "total", "weights_gib": {side: held for frame mode}, "settings", "machine", "versions",
        "samples": raw seconds}. Seconds are medians per call on all frames; difference is max |ours - reference| /
        max |reference|, in "total" of features computed end to end.
    Raises:
        UserError: numbers out of range, or a device that is not there.
    """
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("bench teacher: no CUDA device that torch can use; measure on --device cpu")
    reference, teacher = build(settings, device)
    parts, difference = prepare(settings, reference, teacher)
    take_turns(parts, settings.repeats, device)
    return {
        "rows": [*(row(part) for part in parts), total_row(parts, difference)],
        "weights_gib": {
            "reference": weight_bytes(reference.transformer, reference.vae.encoder, reference.vae.quant_conv) / GIB,
            "ours": weight_bytes(teacher.simulator, teacher.latents.encoder, teacher.latents.quant_conv) / GIB,
        },
        "settings": asdict(settings),
        "machine": {**machine(), "threads": torch.get_num_threads(), "accelerator": accelerator(device)},
        "versions": tool_versions(),
        "samples": {part.name: part.seconds for part in parts},
    }


def build(settings: Settings, device: torch.device) -> tuple[ReferenceRecipe, Teacher]:
    """Both sides; in float32 they share every weight, in bfloat16 ours are a rounded copy."""
    transformer, vae = random_wan(settings.layers, device=device)
    dtype = getattr(torch, settings.dtype)
    prompt = torch.randn(1, WAN_1_3B["text_dim"], generator=torch.Generator().manual_seed(0))
    config = TeacherConfig(
        name="random", weights="random", blocks=(settings.block,), size=settings.size, grid=GRID, dtype=settings.dtype
    )
    own = transformer if dtype == torch.float32 else rounded(transformer, dtype)
    teacher = Teacher(own, vae, prompt, config, device, compile=settings.compile)
    return ReferenceRecipe(transformer, vae, prompt, settings.block, teacher.simulator.timestep, dtype), teacher


def rounded(transformer: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """A copy whose matrices are in `dtype`; what sets the modulation stays in float32, as in a loaded checkpoint."""
    own = copy.deepcopy(transformer)
    for part in (own.patch_embedding, *own.blocks.modules()):
        if isinstance(part, (nn.Linear, nn.Conv3d, nn.RMSNorm)):
            part.to(dtype)
    return own


def prepare(settings: Settings, reference: ReferenceRecipe, teacher: Teacher) -> tuple[list[Part], float]:
    """The VAE and the DiT step on fixed inputs, warmed up, and how far the features of the way through both differ."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(settings.frames, 3, *settings.size, generator=generator).to(teacher.device)
    vae = Part("vae", {"reference": lambda: reference.latents(images), "ours": lambda: teacher.latents.frames(images)})
    latents = vae.warm_up(teacher.device)["reference"]
    noise = torch.randn(latents.shape, generator=generator).to(teacher.device)
    noisy = teacher.simulator.add_noise(latents, noise)
    dit = Part(
        "dit", {"reference": lambda: reference.maps(noisy), "ours": lambda: teacher.maps(latents, noise)[settings.block]}
    )
    wanted = dit.warm_up(teacher.device)["reference"].cpu()
    return [vae, dit], relative(teacher.features(images, noise=noise).blocks[settings.block], wanted)


def take_turns(parts: list[Part], repeats: int, device: torch.device) -> None:
    """Alternate who goes first, so that neither side always runs on the other's warm caches."""
    for turn in range(repeats):
        for part in parts:
            for side in SIDES if turn % 2 == 0 else SIDES[::-1]:
                part.run(side, device)


def row(part: Part) -> dict[str, Any]:
    return _row(part.name, part.seconds, part.peak, part.difference)


def total_row(parts: list[Part], difference: float) -> dict[str, Any]:
    """Sums within a round, then the median over rounds; the peak is that of the hungrier part."""
    seconds = {side: [sum(turn) for turn in zip(*(part.seconds[side] for part in parts))] for side in SIDES}
    peaks = {side: max(part.peak[side] or 0 for part in parts) or None for side in SIDES}
    return _row("total", seconds, peaks, difference)


def _row(name: str, samples: dict[str, list[float]], peaks: dict[str, int | None], difference: float) -> dict[str, Any]:
    """The ratio is that of the medians; its range over single rounds says how much a busy machine blurs it."""
    medians = {side: statistics.median(samples[side]) for side in SIDES}
    rounds = [reference / ours for reference, ours in zip(samples["reference"], samples["ours"])]
    return {
        "part": name,
        **{f"{side}_s": medians[side] for side in SIDES},
        "ratio": medians["reference"] / medians["ours"],
        "ratio_range": [min(rounds), max(rounds)],
        **{f"{side}_peak_gib": None if (peak := peaks[side]) is None else peak / GIB for side in SIDES},
        "difference": difference,
    }


def table(result: dict[str, Any]) -> str:
    """The rows as text for a terminal, with what they were measured on."""
    s, where, weights = result["settings"], result["machine"], result["weights_gib"]
    lines = [
        f"{where['accelerator'] or where['device']}, {where['threads']} thread(s), load {where['load_1min']}",
        f"random weights at Wan2.1-1.3B's widths: {s['block'] + 1} of {s['layers']} blocks needed, {s['frames']} frames of "
        f"{s['size'][0]}x{s['size'][1]}, {s['dtype']}{', compiled' if s['compile'] else ''}, median of {s['repeats']}",
        f"{'':<7}{'reference s':>12}{'ours s':>9}{'ratio':>8}{'over rounds':>15}{'peak GiB':>11}{'ours':>7}{'difference':>13}",
    ]
    for r in result["rows"]:
        peaks = [r[f"{side}_peak_gib"] for side in SIDES]
        shown = ["-" if peak is None else f"{peak:.2f}" for peak in peaks]
        spread = f"{r['ratio_range'][0]:.2f} to {r['ratio_range'][1]:.2f}"
        lines.append(
            f"{r['part']:<7}{r['reference_s']:>12.2f}{r['ours_s']:>9.2f}{r['ratio']:>7.2f}x{spread:>15}{shown[0]:>11}"
            f"{shown[1]:>7}{r['difference']:>13.1e}"
        )
    kind = "allocated by torch" if where["accelerator"] else "of the resident set"
    lines.append(
        f"peak: rise {kind} during one call, beside {weights['reference']:.2f} GiB of weights (ours: {weights['ours']:.2f})"
    )
    return "\n".join(lines)


def relative(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all distinct parameters and buffers."""
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(t.nbytes for t in tensors.values())


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def accelerator(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
