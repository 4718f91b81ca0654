"""V-JEPA 2: self-supervised tubelet tokens of a whole clip, after the encoder's final norm.

python -c "from teacher.rivals import load_rival; load_rival('vjepa2-g', 'PATH')"
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import VJEPA2Model

from teacher.rivals.base import CleanRival, RivalConfig
from teacher.rivals.dinov3 import imagenet
from teacher.rivals.folder import Folder
from vega_artifact import UserError


class Vjepa2(CleanRival):
    """Tap i is the output of layer i through the final norm; a map of a tubelet of two frames is given for both.

    The rotary positions of the transformers class are laid out for `crop_size`, whatever the input, so the model must have
    been built with `crop_size` equal to the side of `size`, and frames must be square.
    """

    def __init__(self, config: RivalConfig, model: VJEPA2Model, device: str | torch.device = "cpu") -> None:
        encoder = model.encoder
        if config.crop != "square" or config.size != (model.config.crop_size,) * 2:
            raise UserError(
                f"{config.name}: crop 'square' and a size with equal sides expected, found {config.crop} {config.size}"
            )
        layers = list(encoder.layer)
        super().__init__(config, layers, [model.config.hidden_size] * len(layers), model.config.patch_size, device)
        encoder.layer = encoder.layer[: self.wanted[-1] + 1]
        self.encoder, self.tubelet = encoder.to(self.device), model.config.tubelet_size  # the predictor is left behind

    def encode(self, clips: Tensor) -> dict[int, Tensor]:
        length = clips.shape[1]
        steps = -(-length // self.tubelet)
        padding = clips[:, -1:].expand(-1, steps * self.tubelet - length, -1, -1, -1)  # the last frame fills its tubelet
        pixels = imagenet(torch.cat([clips, padding], dim=1)).to(self.encoder.embeddings.patch_embeddings.proj.weight.dtype)
        grid = [steps, *(side // self.multiple for side in pixels.shape[3:])]
        found = self.taps.run(lambda: self.encoder(pixels))
        return {index: self._frames(tokens, grid)[:, :length] for index, tokens in found.items()}

    def _frames(self, tokens: Tensor, grid: list[int]) -> Tensor:
        """(B, steps * gh * gw, C) -> (B, steps * tubelet, C, gh, gw)."""
        maps = self.encoder.layernorm(tokens).unflatten(1, grid).movedim(-1, 2)
        return maps.repeat_interleave(self.tubelet, dim=1)


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> Vjepa2:
    model = folder.network("", VJEPA2Model, optional=("predictor",), crop_size=config.size[0])
    return Vjepa2(config, model, device)
