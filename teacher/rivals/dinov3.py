"""DINOv3: self-supervised patch tokens of single frames, after the final norm.

python -c "from teacher.rivals import load_rival; load_rival('dinov3-l', 'PATH')"
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DINOv3ViTModel

from teacher.rivals.base import CleanRival, RivalConfig
from teacher.rivals.folder import Folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Dinov3(CleanRival):
    """Tap i is the output of layer i through the final norm, class and register tokens dropped."""

    def __init__(self, config: RivalConfig, model: DINOv3ViTModel, device: str | torch.device = "cpu") -> None:
        encoder = getattr(model, "model", model)  # transformers 4 keeps the layers on the model itself
        layers = list(encoder.layer)
        super().__init__(config, layers, [model.config.hidden_size] * len(layers), model.config.patch_size, device)
        encoder.layer = encoder.layer[: self.wanted[-1] + 1]
        self.model, self.prefix = model.to(self.device), 1 + model.config.num_register_tokens

    def encode(self, clips: Tensor) -> dict[int, Tensor]:
        pixels = imagenet(clips[:, 0])
        grid = [side // self.multiple for side in pixels.shape[2:]]
        found = self.taps.run(lambda: self.model(pixels))
        return {
            index: self.model.norm(tokens)[:, self.prefix :].transpose(1, 2).unflatten(2, grid)[:, None]
            for index, tokens in found.items()
        }


def imagenet(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] -> ImageNet mean 0, standard deviation 1."""
    mean, std = (images.new_tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> Dinov3:
    return Dinov3(config, folder.network("", DINOv3ViTModel), device)
