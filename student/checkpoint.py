"""Students on disk: weights as safetensors beside the `manifest.json` of a run.

`distill` writes them, `export` and `bench` read them back with `load_student(RUN)`, or `load_streaming(RUN)`.

    python -c "from student import load_student; print(load_student('RUN').config)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from student.model import StudentConfig, StudentModel
from student.streaming import AnyStudent, StreamingConfig, StreamingStudent
from vega_artifact import UserError, atomic_write, canonical, read_manifest, verify_files

WEIGHTS = "student.safetensors"
INITIAL_WEIGHTS = "student_init.safetensors"


def save_weights(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically, on whatever device they are."""
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    content = save(plain)  # bytes first: the library's own writer hides a full disk behind another error
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Read safetensors onto the CPU; a missing or broken file is a UserError that names it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make the run (again) with `vega-edge train`") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); make the run again") from error


def config_to_json(config: StudentConfig | StreamingConfig) -> dict[str, Any]:
    return canonical(asdict(config))


def config_from_json(record: Mapping[str, Any], where: Path | str) -> StudentConfig | StreamingConfig:
    """The config a manifest recorded, of whichever kind; `where` is named when the record is unusable."""
    try:
        if "frame" in record:
            return StreamingConfig(**{**record, "frame": _frame_config(record["frame"])})
        return _frame_config(record)
    except (TypeError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"{where}: its student record does not describe a student ({error}); make the run again") from error


def _frame_config(record: Mapping[str, Any]) -> StudentConfig:
    sizes = {key: (int(record[key][0]), int(record[key][1])) for key in ("image_size", "grid")}
    return StudentConfig(**{**record, **sizes})


def fill(model: AnyStudent, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Load weights strictly; a mismatch is a UserError with the first lines of what differs."""
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        frame = model.frame if isinstance(model, StreamingStudent) else model
        raise UserError(f"{where}: the weights do not fit student {frame.config.name!r}: {reason}") from error


def load_student(run: Path | str, *, undistilled: bool = False) -> StudentModel:
    """The student of a finished run, float32 on the CPU, in eval mode; its outputs live in the teacher's feature space.

    Args:
        run: folder with `manifest.json` of kind "run".
        undistilled: take the weights the run began with instead: the control that shows what training added.

    Raises:
        UserError: no finished run, weights missing, altered or not fitting, or a streaming student.
    """
    student = load_model(run, undistilled=undistilled)
    if not isinstance(student, StudentModel):
        raise UserError(f"{run}: holds a streaming student, which needs frames in order; load it with student.load_streaming")
    return student


def load_streaming(run: Path | str, *, undistilled: bool = False) -> StreamingStudent:
    """The streaming student of a finished run; arguments, device and errors as for `load_student`."""
    student = load_model(run, undistilled=undistilled)
    if not isinstance(student, StreamingStudent):
        raise UserError(f"{run}: holds a student of single frames, no streaming one; load it with student.load_student")
    return student


def load_model(run: Path | str, *, undistilled: bool = False) -> AnyStudent:
    """The student of a finished run, of whichever kind; arguments, device and errors as for `load_student`."""
    run = Path(run)
    manifest = read_manifest(run, "run")
    name = INITIAL_WEIGHTS if undistilled else WEIGHTS
    if name not in manifest["files"] or "student" not in manifest:
        raise UserError(f"{run / 'manifest.json'}: names no {name} or no student; make the run again with `vega-edge train`")
    verify_files(run, {**manifest, "files": {name: manifest["files"][name]}})
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten; the caller's random state stays as it was
        config = config_from_json(manifest["student"], run / "manifest.json")
        model = StreamingStudent(config) if isinstance(config, StreamingConfig) else StudentModel(config)
    fill(model, read_weights(run / name), run / name)
    return model.eval()
