"""Which cases there are to time: every backend that truly runs an artifact here, at every batch.

Part of `bench.latency`: EXPORTS, ENGINES, bundles (and a RUN) -> cases. A backend that cannot run here is left out with a word,
unless it was asked for by name. Travels in the device bundle, hence Python 3.10; torch is imported for torch rows only.

    vega-edge bench latency EXPORT --backends torch torch.compile onnxruntime --run RUN
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bench import cuda_steps
from bench.timing import Case, Step
from export.runtime import Encoder, RuntimeInputError
from export.runtime.backends import PROVIDERS, has_cuda_driver
from export.runtime.encoder import open_encoder
from vega_artifact import MANIFEST, UserError, check_parent, read_manifest, unknown_name

TORCH = ("torch", "torch.compile", "torch-cuda", "torch-cuda+graph", "torch.compile-cuda")
FILES = (*PROVIDERS, "onnxruntime-cuda+graph")
ENGINES = ("engine", "engine+graph")
BACKENDS = (*TORCH, *FILES, *ENGINES)
ANYWHERE = ("torch", "torch.compile", "onnxruntime")  # need no GPU
SLOW_START = ("torch.compile", "torch.compile-cuda", "onnxruntime-tensorrt")  # minutes before the first call: on request only
GRAPH = "+graph"


@dataclass(frozen=True)
class Request:
    """What is to be timed.

    Attributes:
        batches: frames per call. threads: CPU threads of each backend.
        backends: of `BACKENDS`; None takes all that run here, without those that need minutes to start.

    Raises:
        UserError: an unknown backend, or numbers below 1.
    """

    batches: tuple[int, ...]
    threads: int = 1
    backends: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.batches or min(self.batches) < 1:
            raise UserError(f"latency: threads {self.threads} and batches {list(self.batches)} must all be at least 1")
        for name in self.backends or ():
            if name not in BACKENDS:
                raise unknown_name("backend", name, BACKENDS)

    def wanted(self, possible: Sequence[str]) -> list[str]:
        """Those of `possible` to try here."""
        if self.backends is not None:
            return [name for name in possible if name in self.backends]
        driver = has_cuda_driver()
        return [name for name in possible if name not in SLOW_START and (driver or name in ANYWHERE or name in ENGINES)]


def collect(paths: Sequence[Path], run: Path | None, request: Request) -> list[Case]:
    """The cases of all artifacts, smallest batch first, with names that tell them apart.

    Raises:
        UserError: nothing to time, a run that is not the parent, or two artifacts that give the same row.
        RuntimeInputError: no artifact, an altered one, or a backend asked for that cannot run here.
    """
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as room:  # of unpacked bundles; whoever opens a model reads all of it at once
        folders = [locate(path, Path(room) / str(index)) for index, path in enumerate(paths)]
        if run is not None:
            cases += torch_cases(folders, run, request)
        for folder in folders:
            cases += file_cases(folder, request)
    if not cases:
        raise UserError(f"latency: {', '.join(request.backends or ())} cannot run what was given; known: {', '.join(BACKENDS)}")
    cases.sort(key=lambda case: case.batch)
    sized = len({case.size for case in cases}) > 1
    for case in cases:
        case.tag = f"@{case.size[0]}x{case.size[1]}" if sized else ""
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"latency: two artifacts give the row {twice[0]}; time them apart and use `vega-edge bench compare`")
    return cases


def locate(path: Path, room: Path) -> Path:
    """The folder of the model: in a bundle (unpacked into `room` after its sums were checked), or the path itself."""
    if path.is_file():
        from export.device.archive import unpack_bundle

        path = unpack_bundle(path, room)
    return path / "model" if (path / "model" / MANIFEST).is_file() else path


def file_cases(folder: Path, request: Request) -> list[Case]:
    """An export on onnxruntime, or an engine."""
    base = open_encoder(folder, "auto" if is_engine(folder) else "onnxruntime", request.threads)
    names = request.wanted(ENGINES if base.description.engine else FILES)
    opened = partial(file_case, folder, base, request.threads)
    return [case for name in names for case in at_batches(name, request, partial(opened, name))]


def at_batches(name: str, request: Request, open_case: Callable[[int], Case]) -> list[Case]:
    """The cases of one backend at every batch it takes; the others are left out with a word.

    Raises:
        RuntimeInputError, UserError: it takes none, and was asked for by name or runs everywhere.
    """
    cases: list[Case] = []
    refused: dict[int, Exception] = {}
    for batch in request.batches:
        try:
            cases.append(open_case(batch))
        except (RuntimeInputError, UserError) as error:  # such as a driver, but an onnxruntime without CUDA's libraries
            refused[batch] = error
    if refused and not cases and (request.backends is not None or name == "onnxruntime"):
        raise next(iter(refused.values()))
    for reason in dict.fromkeys(map(str, refused.values())):
        batches = ", ".join(f"b{batch}" for batch, error in refused.items() if str(error) == reason)
        print(f"no {name} row of {batches}: {reason}", file=sys.stderr)
    return cases


def is_engine(folder: Path) -> bool:
    """Whether the folder says it holds an engine; what is wrong with it otherwise is told when it is opened."""
    return (folder / "engine.plan").is_file()


def file_case(folder: Path, base: Encoder, threads: int, name: str, batch: int) -> Case:
    """One backend at one batch; with the copies to the GPU apart where the backend lets them be."""
    about = base.description
    backend = name.replace("engine", base.backend)
    steps = file_steps(folder, base, name, batch, threads)
    case = Case("student_exported", backend, about.precision, frames_of(batch, about.size), steps, about.size)
    case.artifact = about.fingerprint
    return case


def file_steps(folder: Path, base: Encoder, name: str, batch: int, threads: int) -> tuple[Step, ...]:
    """The steps of one backend; a student with memory, or a batch that is cut in pieces, goes through the encoder whole."""
    whole = base.streaming or batch > base.description.max_batch
    if GRAPH in name and whole:
        text = f"a student without memory and at most {base.description.max_batch} frames per call"
        raise RuntimeInputError(f"{name}: CUDA graphs need {text}; leave it out")
    if name.startswith("onnxruntime-cuda") and not whole:
        return cuda_steps.session_steps(base, GRAPH in name)
    if name in ENGINES and not whole:  # a graph keeps the state of its execution context, so it gets one of its own
        return cuda_steps.engine_steps(open_encoder(folder) if GRAPH in name else base, GRAPH in name)
    shared = not base.streaming and name in ("onnxruntime", "engine")
    encoder = base if shared else open_encoder(folder, "auto" if name == "engine" else name, threads)
    return encoder.prepare, encoder.infer, encoder.finish


def torch_cases(folders: Sequence[Path], run: Path, request: Request) -> list[Case]:
    """The torch student every export was made from, at the size of the first; a backend that torch cannot run is left out.

    Raises:
        UserError: no export among the artifacts, or one of another run.
    """
    exports = [folder for folder in folders if not is_engine(folder)]
    if not exports:
        raise UserError(f"{run}: torch rows need an export of this run for size and preprocessing; add it to the artifacts")
    manifests = [read_manifest(folder, "export") for folder in exports]
    fingerprint = read_manifest(run, "run")["fingerprint"]
    for folder, manifest in zip(exports, manifests):
        check_parent(manifest, "run", fingerprint, folder)
    from bench import torch_steps
    from student import load_model

    student, base = load_model(run), open_encoder(exports[0], "onnxruntime", request.threads)
    size = base.description.size

    def torch_case(name: str, batch: int) -> Case:
        steps = torch_steps.steps(student, base, name)
        return Case("student", name, "fp32", frames_of(batch, size), steps, size, artifact=fingerprint)

    names = request.wanted(TORCH)
    return [case for name in names for case in at_batches(name, request, partial(torch_case, name))]


def frames_of(batch: int, size: tuple[int, int]) -> np.ndarray:
    """The same random uint8 (B, H, W, 3) for every backend."""
    return np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
