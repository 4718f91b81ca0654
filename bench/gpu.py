"""GPU checks: one command, under ten minutes; the teacher in the true Wan2.1-1.3B configuration with random weights, a student.

A leaf of the chain: writes a folder of kind "bench" with the measurements and the verdicts, named after the machine.

    python -m bench.gpu --out results/h200
    python -m bench.gpu --out results/h200-student --parts student
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench import gpu_student, latency, train_speed
from bench.reference import TEXT_ROWS, WAN_1_3B
from bench.teacher import Settings, measure, synchronise, table
from vega_artifact import UserError, unknown_name, write_json, write_manifest

SIZES = ((480, 832), (720, 1280))
WANTED_RATIO = 2.5
WANTED_SHARE = 0.45
WANTED_LOOP = 0.90  # of the rate of forward and backward alone
PARTS = ("teacher", "student")
MATRIX = 8192  # side of the square product that gives the machine's bfloat16 rate: large enough to be bound by arithmetic


@dataclass(frozen=True)
class Check:
    """One number against what it should reach."""

    name: str
    value: float
    wanted: float

    @property
    def passed(self) -> bool:
        return self.value >= self.wanted


def block_flops(tokens: int, text_rows: int = TEXT_ROWS) -> float:
    """Multiply-adds times two of one 1.3B block on one frame of `tokens` tokens, as the reference computes it."""
    width, inner = WAN_1_3B["num_attention_heads"] * WAN_1_3B["attention_head_dim"], WAN_1_3B["ffn_dim"]
    projections = tokens * (6 * width**2 + 2 * width * inner)
    text = text_rows * 2 * width**2 + 2 * tokens * text_rows * width
    return 2 * (projections + 2 * tokens**2 * width + text)


def folded_flops(tokens: int) -> float:
    """The same block as `teacher.frozen_block` computes it for the empty prompt: two text rows, their projections folded."""
    width, heads = WAN_1_3B["num_attention_heads"] * WAN_1_3B["attention_head_dim"], WAN_1_3B["num_attention_heads"]
    return block_flops(tokens, 0) + 2 * tokens * (2 * 2 * heads * width - width**2)


def share_of_rate(settings: Settings, seconds: float, flops_per_second: float) -> float:
    """Share of a measured matmul rate that the DiT step reaches, counting only what it truly computes."""
    tokens = settings.size[0] // 16 * (settings.size[1] // 16)
    return folded_flops(tokens) * (settings.block + 1) * settings.frames / seconds / flops_per_second


def checks(settings: Settings, result: dict[str, Any], flops_per_second: float) -> list[Check]:
    """Ratio in total and share of the matmul rate at one frame size."""
    rows = {row["part"]: row for row in result["rows"]}
    at = f"{settings.size[0]}x{settings.size[1]}"
    return [
        Check(f"{at} total ratio", rows["total"]["ratio"], WANTED_RATIO),
        Check(f"{at} DiT share of matmul rate", share_of_rate(settings, rows["dit"]["ours_s"], flops_per_second), WANTED_SHARE),
    ]


def matmul_rate(device: torch.device, side: int = MATRIX, repeats: int = 20) -> float:
    """Median bfloat16 FLOP/s of a square matrix product."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for turn in range(repeats + 3):
        synchronise(device)
        began = time.perf_counter()
        left @ right
        synchronise(device)
        if turn >= 3:
            seconds.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(seconds)


def run(out: Path, frames: int, repeats: int, compile: bool, parts: Sequence[str] = PARTS) -> list[Check]:
    """Measure the parts, print their tables, write a folder with a JSON file of each.

    Raises:
        UserError: no CUDA device, or an unknown part.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise unknown_name("part", unknown[0], PARTS)
    if not torch.cuda.is_available():
        raise UserError("bench.gpu: no CUDA device that torch can use; `vega-edge bench teacher` measures on a CPU")
    device = torch.device("cuda")
    out.mkdir(parents=True, exist_ok=True)
    verdicts: list[Check] = []
    for part in PARTS:
        if part not in parts:
            continue
        found, judged = (
            of_teacher(device, frames, repeats, compile) if part == "teacher" else of_student(gpu_student.Settings())
        )
        write_json(out / f"{part}.json", {**found, "checks": [verdict(check) for check in judged]})
        verdicts += judged
    config = {"sizes": SIZES, "frames": frames, "repeats": repeats, "compile": compile, "parts": list(parts)}
    files = [f"{part}.json" for part in PARTS if part in parts]
    write_manifest(out, "bench", config, files=files, device=torch.cuda.get_device_name(device))
    return verdicts


def of_teacher(device: torch.device, frames: int, repeats: int, compile: bool) -> tuple[dict[str, Any], list[Check]]:
    """Speed of the teacher against the reference recipe, at every frame size."""
    rate = matmul_rate(device)
    print(f"{torch.cuda.get_device_name(device)}: {rate / 1e12:.0f} TFLOP/s in bfloat16 products of {MATRIX}x{MATRIX}")
    results, verdicts = [], []
    for size in SIZES:
        settings = Settings(size=size, frames=frames, repeats=repeats, dtype="bfloat16", device="cuda", compile=compile)
        result = measure(settings)
        print(table(result), flush=True)
        results.append(result)
        verdicts += checks(settings, result, rate)
    return {"matmul_flops_per_second": rate, "results": results}, verdicts


def of_student(settings: gpu_student.Settings) -> tuple[dict[str, Any], list[Check]]:
    """The student's training loop against forward and backward alone, and every backend's answers against torch's."""
    with tempfile.TemporaryDirectory() as work:
        found = gpu_student.measure(settings, Path(work))
    print(train_speed.table(found["training"]), latency.table(found["latency"]), sep="\n", flush=True)
    print("\n".join(f"not here: {name}: {why}" for name, why in found["absent"].items()))
    judged = [Check("student training loop", found["training"]["rows"][0]["ratio"], WANTED_LOOP)]
    judged += [Check(f"self test {name} ({said})", said == "passed", 1) for name, said in found["self_tests"].items()]
    return found, judged


def verdict(check: Check) -> dict[str, Any]:
    return {**asdict(check), "passed": check.passed}


def summary(verdicts: list[Check]) -> str:
    """One line per check."""
    marks = {True: "pass", False: "FAIL"}
    return "\n".join(f"{marks[c.passed]}  {c.name}: {c.value:.2f} (wanted {c.wanted:.2f})" for c in verdicts)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when every check passed, 1 when one failed, 2 for bad input or a machine without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="GPU checks of teacher and student.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the measurements, such as results/h200")
    parser.add_argument("--frames", type=int, default=32, help="frames per call")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--no-compile", action="store_true", help="measure ours without torch.compile")
    parser.add_argument("--parts", nargs="+", default=PARTS, help="teacher, student or both")
    options = parser.parse_args(arguments)
    try:
        verdicts = run(options.out, options.frames, options.repeats, not options.no_compile, options.parts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(verdicts))
    return 0 if all(check.passed for check in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
