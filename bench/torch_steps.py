"""The steps of a call of the torch student: eager, compiled, on the CPU or on a GPU, replayed as a CUDA graph or not.

Part of `bench.latency`; stays at home, no device carries torch. Same preprocessing, same streams, numpy at both ends as for
the exported file, so that the rows compare.

    vega-edge bench latency EXPORT --run RUN --backends torch torch.compile onnxruntime
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.timing import Step
from export.runtime import Encoder, RuntimeInputError
from vega_artifact import UserError

Forward = Callable[[Tensor], list[Tensor]]
WARM_CALLS = 3  # before a capture: libraries choose and allocate in the first calls


def steps(student: nn.Module, encoder: Encoder, backend: str) -> tuple[Step, ...]:
    """The steps of one backend, for one batch size.

    Args:
        student: float32, on the CPU; a GPU gets a copy. encoder: the export, for its preprocessing and streams.
        backend: "torch", "torch.compile", "torch-cuda", "torch.compile-cuda" or "torch-cuda+graph".

    Raises:
        UserError: a GPU is wanted and torch finds none.
    """
    device = torch.device("cuda" if "cuda" in backend else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{backend}: torch finds no CUDA device; leave this backend out")
    forward = forward_of(copy.deepcopy(student).to(device), list(encoder.description.streams))
    if ".compile" in backend:
        forward = torch.compile(forward, dynamic=False)
    if device.type == "cpu":
        return encoder.prepare, lambda images: host(forward, images), encoder.finish
    return device_steps(GraphedForward(forward) if "+graph" in backend else forward, encoder, device)


def forward_of(student: Any, names: list[str]) -> Forward:
    """Images (B, 3, H, W) -> the streams in the manifest's order; a streaming student keeps its memory from call to call."""
    if not hasattr(student, "initial_state"):

        def frame(images: Tensor) -> list[Tensor]:
            streams = student(images)
            return [streams[name] for name in names]

        return frame
    memory: dict[str, Any] = {}

    def step(images: Tensor) -> list[Tensor]:
        found, memory["state"] = student.step(images, memory.get("state") or student.initial_state(len(images)))
        return [found[name] for name in names]

    return step


def host(forward: Forward, images: np.ndarray) -> list[np.ndarray]:
    """One call on the CPU."""
    with torch.inference_mode():
        return [value.numpy() for value in forward(torch.from_numpy(images))]


def device_steps(forward: Forward, encoder: Encoder, device: torch.device) -> tuple[Step, ...]:
    """Five steps with the copies apart; each waits for the device (a CPU has nothing to wait for)."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def upload(images: np.ndarray) -> Tensor:
        copied = torch.from_numpy(images).to(device, copy=True)
        wait()
        return copied

    def compute(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            outputs = forward(images)
        wait()
        return outputs

    def download(outputs: list[Tensor]) -> list[np.ndarray]:
        return [value.cpu().numpy() for value in outputs]

    return encoder.prepare, upload, compute, download, encoder.finish


class GraphedForward:
    """A forward pass recorded as a CUDA graph at the first call, then replayed on its own input and output buffers."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images: Tensor
        self._outputs: list[Tensor]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images of the first call's shape -> the recorded outputs, which the next call overwrites."""
        if self._graph is None:
            self._record(images)
        self._images.copy_(images)
        self._graph.replay()  # type: ignore[union-attr]
        return self._outputs

    def _record(self, images: Tensor) -> None:
        self._images = images.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_CALLS):
                self._forward(self._images)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                self._outputs = self._forward(self._images)
        except RuntimeError as error:  # a network that waits for the device, or allocates
            reason = str(error).strip().splitlines()[0]
            raise RuntimeInputError(
                f"torch: it cannot be captured as a CUDA graph ({reason}); leave torch-cuda+graph out"
            ) from error


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set torch's CPU threads for the block and put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
