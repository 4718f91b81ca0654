"""The student's part of the GPU checks: how fast it learns, and how fast its files answer, on the machine at hand.

Called by `bench.gpu`; weights are random but for a few steps, since neither speed nor agreement with torch depends on them.

    python -m bench.gpu --out results/h200 --parts student
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import latency, train_speed
from distill import RunConfig, train
from export import export_run
from export.runtime import Encoder, RuntimeInputError
from export.tensorrt import build_engine, import_tensorrt
from vega_artifact import UserError

SIDE = 224
PROVIDERS = ("onnxruntime", "onnxruntime-cuda")  # whose answers are held against torch's; engines test themselves when built
TORCH = ("torch-cuda", "torch-cuda+graph", "torch.compile-cuda")
SESSIONS = ("onnxruntime-cuda", "onnxruntime-cuda+graph")
ENGINES = ("engine", "engine+graph")
EVERYWHERE = ("torch", "onnxruntime")  # where there is no GPU, to try the command


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        recipe, batch, steps, rounds: of the training loop, as in `bench.train_speed`. student: whose files are timed.
        size: (H, W) of its images. repeats: timed calls per row. cpu: although there is a GPU.
    """

    recipe: str = "vit_small_gpu"
    batch: int = 256
    steps: int = 5
    rounds: int = 5
    student: str = "vit_tiny"
    size: tuple[int, int] = (SIDE, SIDE)
    repeats: int = 200
    cpu: bool = False


def measure(settings: Settings, work: Path) -> dict[str, Any]:
    """Train, export, build and time; everything that is made lies below `work`.

    Returns:
        {"training": as `bench.train_speed.measure`, "latency": as `bench.latency.measure`, "self_tests": {file/backend:
        "passed", or what it said}, "absent": {file/backend: why it cannot run here}}; what is absent is not timed.
    """
    shared = {"recipe": settings.recipe, "batch": settings.batch, "steps": settings.steps, "rounds": settings.rounds}
    training = train_speed.measure(train_speed.Settings(**shared, threads=(1,), cpu=settings.cpu))
    config = RunConfig(
        student=settings.student, image_size=settings.size, steps=10, batch=16, optimizer="adamw", progress=False
    )
    run = train(train_speed.random_cache(work / "cache", config), work / "run", config)
    exports = {kind: export_run(run, work / kind, precision=kind) for kind in ("fp32", "fp16")}
    told: dict[str, str] = {}
    absent: dict[str, str] = {}
    engines: list[Path] = []
    for kind, folder in exports.items():
        for name in PROVIDERS:
            try:
                told[f"{kind}/{name}"] = self_test(Encoder(folder, name))
            except RuntimeInputError as error:
                absent[f"{kind}/{name}"] = str(error)
        try:
            import_tensorrt()
        except UserError as error:
            absent[f"{kind}/engine"] = str(error)
        else:
            told[f"{kind}/engine"] = engine(folder, work / f"engine-{kind}", engines)
    here = {name.partition("/")[2] for name in told}
    files = [name for name in (*SESSIONS, *ENGINES) if name.partition("+")[0] in here and (engines or name not in ENGINES)]
    names = EVERYWHERE if settings.cpu else (*TORCH, *files)
    timed = latency.measure([*exports.values(), *engines], run, (1, 4, 16), settings.repeats, backends=names)
    return {"training": training, "latency": timed, "self_tests": told, "absent": absent}


def self_test(encoder: Encoder) -> str:
    """ "passed", or what is off."""
    try:
        encoder.check()
    except RuntimeInputError as error:
        return str(error)
    return "passed"


def engine(export: Path, out: Path, built: list[Path]) -> str:
    """The same of an engine, which tests itself when it is built; a good one is added to `built`."""
    try:
        built.append(build_engine(export, out, largest_batch=16))
    except UserError as error:
        return str(error)
    return "passed"
