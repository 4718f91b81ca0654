"""Frames and targets once per machine, however many processes train on it: one reads the cache, the others map its memory.

Between `distill.dataset`, which reads, and `distill.train`. The memory is a file that nobody finds any more once all have it.

    python -m pytest tests/distill/test_resident.py -q
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.dataset import Frames
from teacher.launch import local_processes
from vega_artifact import read_json, write_json

if TYPE_CHECKING:
    from accelerate import Accelerator

INDEX = "index.json"
IMAGES, TARGETS = "images", "target-"
MEMORY = Path("/dev/shm")  # in memory where it is large enough: containers often get 64 MiB of it


def once_per_machine(load: Callable[[], Frames], accelerator: Accelerator, name: str, needed: int) -> Frames:
    """What `load` gives, read by one process of every machine.

    Args:
        name: the same in all processes of the run, and different from that of any other run.
        needed: bytes of the frames and targets.
    """
    if local_processes() == 1:
        return load()
    if accelerator.is_local_main_process:
        folder = places(name)[0 if _room(MEMORY) > needed else 1]
        frames = stored(load, folder)
    accelerator.wait_for_everyone()
    if not accelerator.is_local_main_process:
        frames = mapped(next(place for place in places(name) if (place / INDEX).exists()))
    accelerator.wait_for_everyone()  # whoever has mapped a file keeps it
    for place in places(name) if accelerator.is_local_main_process else ():
        shutil.rmtree(place, ignore_errors=True)
    return frames


def places(name: str) -> tuple[Path, Path]:
    """Where the memory may lie for a moment: in RAM, or in a temporary folder."""
    return MEMORY / f"vega-edge-{name}", Path(tempfile.gettempdir()) / f"vega-edge-{name}"


def _room(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.is_dir() else 0


def stored(load: Callable[[], Frames], folder: Path) -> Frames:
    """Frames whose tensors lie in files of `folder`, one after the other, so that hardly more memory is needed than once."""
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    frames = load()
    scenes, lengths = frames.scenes, frames.lengths
    given = {IMAGES: frames.images, **{TARGETS + name: value for name, value in frames.targets.items()}}
    del frames
    kinds = {name: _kind(value) for name, value in given.items()}
    held = {}
    while given:
        name, value = given.popitem()
        held[name] = _mapped(folder / name, kinds[name]).copy_(value)
    write_json(folder / INDEX, {"scenes": scenes, "lengths": lengths, "tensors": kinds})
    return _frames({name: held[name] for name in kinds}, scenes, lengths)


def mapped(folder: Path) -> Frames:
    """The same frames as another process stored them."""
    index = read_json(folder / INDEX)
    held = {name: _mapped(folder / name, kind) for name, kind in index["tensors"].items()}
    return _frames(held, tuple(index["scenes"]), tuple(index["lengths"]))


def _kind(tensor: Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _mapped(path: Path, kind: dict[str, Any]) -> Tensor:
    shape = torch.Size(kind["shape"])
    return torch.from_file(str(path), shared=True, size=shape.numel(), dtype=getattr(torch, kind["dtype"])).view(shape)


def _frames(held: dict[str, Tensor], scenes: tuple[str, ...], lengths: tuple[int, ...]) -> Frames:
    targets = {name.removeprefix(TARGETS): value for name, value in held.items() if name != IMAGES}
    return Frames(held[IMAGES], targets, scenes, lengths)
