"""Reads the outputs of chosen layers from a running model and stops it after the last of them.

The model's own forward runs, so nothing of it is written a second time; what lies behind the last tap is never computed.

    python -c "from torch import nn, ones; from teacher.rivals.taps import Taps; net = nn.Sequential(nn.ReLU(), nn.Tanh()); \
               print(Taps(net, [0]).run(lambda: net(ones(2))))"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class _StopForward(Exception):
    """Leaves a forward pass early; never leaves `Taps.run`."""


class Taps:
    """The outputs of some of a model's layers.

    Args:
        layers: the model's layers in the order in which they run.
        wanted: indices of the layers to read, sorted, never negative.
    """

    def __init__(self, layers: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        self.layers = {index: layers[index] for index in wanted}
        self.last = max(wanted)

    def run(self, forward: Callable[[], object]) -> dict[int, Tensor]:
        """Call `forward` up to the last wanted layer: index -> that layer's output (of a tuple the first item)."""
        found: dict[int, Tensor] = {}
        handles = [layer.register_forward_hook(self._reader(index, found)) for index, layer in self.layers.items()]
        try:
            forward()
        except _StopForward:
            return found
        finally:
            for handle in handles:
                handle.remove()
        raise RuntimeError(f"layer {self.last} did not run in this forward pass")

    def _reader(self, index: int, found: dict[int, Tensor]) -> Callable[..., None]:
        def read(module: nn.Module, inputs: object, output: object) -> None:
            found[index] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]
            if index == self.last:
                raise _StopForward

        return read
