"""How many frames run together: as many as the free memory holds, and never a different value for it.

Frames are independent in the VAE and, in frame mode, in the DiT, so a chunk decides speed and memory alone. Its size is a power
of two below a cap that every ordinary machine reaches, so that the little that is free more or less does not change it.

    python -c "import torch; from teacher.chunks import free_bytes; print(free_bytes(torch.device('cpu')) / 2**30)"
"""

from __future__ import annotations

import psutil
import torch

from vega_artifact import UserError

SHARE = 0.5  # of what is free now: the estimate is a bound on activations, not on what libraries allocate beside them
GIB = 1 << 30


def free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on `device` now; on CUDA this includes what torch holds but does not use."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available


def frames_per_chunk(frame_bytes: int, device: torch.device, memory: float | None, most: int) -> int:
    """Frames to run together.

    Args:
        frame_bytes: activation bytes of one frame.
        memory: budget in GiB; None: half of what is free on `device`.
        most: cap, which alone decides where memory is plentiful.
    Returns:
        `most`, or the largest power of two below it that fits; never less than 1, as a frame cannot be split.
    Raises:
        UserError: a budget that is not positive.
    """
    if memory is not None and not memory > 0:
        raise UserError(f"memory {memory}: a positive budget in GiB expected, or none for half of what is free")
    budget = SHARE * free_bytes(device) if memory is None else memory * GIB
    fits = int(budget // max(frame_bytes, 1))
    return most if fits >= most else 1 << max(fits.bit_length() - 1, 0)
