"""The semantic stream: SigLIP patch tokens of the same pixels the generator saw.

As in the reference, tokens are the hidden state before the last encoder layer's successor would normalise them: the output of
the wanted layer, no post-LayerNorm (spec/vega3d.md 4). The reference projects the tower's own grid (27x27 for so400m) and pools
after that: `grid=None` keeps that grid, and `project_then_pool` does the rest.

    python -c "from teacher.semantic import load_semantic; print(load_semantic('teacher/bundle/semantic').channels)"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionModel
from transformers.utils import logging

from teacher.framing import as_unit_images
from vega_artifact import UserError


class SemanticEncoder(nn.Module):
    """SigLIP vision tower up to `layer`, pooled bilinearly to `grid`.

    Args:
        model: the vision tower; encoder layers after `layer` are released.
        layer: number of encoder layers to run (SigLIP so400m in VEGA-3D: 26 of 27).
        grid: (gh, gw) of the returned maps; None: the tower's own.
    """

    def __init__(self, model: SiglipVisionModel, layer: int, grid: tuple[int, int] | None, batch: int = 64) -> None:
        super().__init__()
        tower = getattr(model, "vision_model", model)
        self.embeddings, self.encoder = tower.embeddings, tower.encoder
        if not 1 <= layer <= len(self.encoder.layers):
            raise UserError(f"semantic layer {layer}: 1..{len(self.encoder.layers)} expected for this SigLIP")
        self.encoder.layers = self.encoder.layers[:layer]
        self.image_size, self.channels = model.config.image_size, model.config.hidden_size
        self.grid, self.batch = grid, batch
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames (T, H, W, 3) uint8 or (T, 3, H, W) float in [0, 1] -> (T, C, gh, gw) float32."""
        images = as_unit_images(frames)
        if tuple(images.shape[2:]) != (self.image_size,) * 2:
            images = F.interpolate(images, (self.image_size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        tokens = torch.cat([self._tokens(chunk) for chunk in images.split(self.batch)])
        side = int(tokens.shape[1] ** 0.5)
        return pool(tokens.transpose(1, 2).unflatten(2, (side, side)), self.grid or (side, side))

    def _tokens(self, images: Tensor) -> Tensor:
        hidden = self.embeddings(images * 2 - 1)  # SigLIP's mean and std are 0.5
        return self.encoder(inputs_embeds=hidden).last_hidden_state.float()


def pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (T, C, h, w) -> (T, C, gh, gw): bilinear without antialias, as the reference's `spatial_pool_mode`."""
    if tuple(maps.shape[2:]) == grid:
        return maps.contiguous()
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False)


def project_then_pool(maps: Tensor, projector: nn.Module, grid: tuple[int, int]) -> Tensor:
    """The reference's order: every token of maps (T, C, h, w) through the projector, then `pool` -> (T, D, gh, gw)."""
    projected = projector(maps.flatten(2).transpose(1, 2))
    return pool(projected.transpose(1, 2).unflatten(2, maps.shape[2:]), grid)


def load_semantic(path: Path | str, layer: int | None = None, grid: tuple[int, int] | None = (14, 14)) -> SemanticEncoder:
    """Load a SigLIP vision tower from a transformers folder; by default all layers but the last, as the reference does.

    Raises:
        UserError: the folder is missing or is no SigLIP vision tower.
    """
    logging.disable_progress_bar()  # a bar per load of a few MB says nothing, and the demo loads often
    try:
        model = SiglipVisionModel.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path}: no SigLIP vision tower loads from here ({str(error).strip().splitlines()[0][:160]})"
        ) from error
    wanted = layer if layer is not None else model.config.num_hidden_layers - 1
    return SemanticEncoder(model, wanted, grid)
