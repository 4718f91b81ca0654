"""Puts a Wan teacher together: checkpoint, prompt encoding, settings and devices become a `Teacher`.

Place in the chain: `teacher.backbones.load_teacher` decides what is wanted, `teacher.loading` reads it, this joins the parts.

    python -c "from teacher import load_teacher; print(load_teacher('PATH').config)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from teacher.devices import Devices
from teacher.features import Teacher, TeacherConfig
from teacher.hub import cached, fetch
from teacher.loading import WanCheckpoint, open_wan, require_architecture, unused_expert
from teacher.prompt import can_make, empty_prompt
from teacher.simulator import snap_sigma
from teacher.vace import VaceConfig, VaceTeacher
from teacher.weights import identity
from vega_artifact import UserError, fingerprint

CONFIGS = ("model_index.json", "config.json", "*/config.json")
WEIGHTS = (*CONFIGS, "*diffusion_pytorch_model*", "Wan2.1_VAE.pth", "*empty_prompt*")
ENCODER = ("text_encoder/*", "models_t5*.pth")


@dataclass(frozen=True)
class Build:
    """How a Wan teacher is built, beside its configuration.

    Attributes:
        source: hub id, or for embedded teachers the transformer's folder in the bundle.
        options: further arguments of the teacher's class; the other fields are those of `load_teacher`.
    """

    source: str
    prompt_embeds: Tensor | Path | str | None
    dtype: torch.dtype
    devices: Devices
    random_weights: int | None
    options: dict[str, Any]

    def wan(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        label: str | None = None,
        variants: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Teacher:
        """From a checkpoint; everything that can be wrong with its configs is said before weights are read.

        Args:
            folder: None fetches `source` from the hub.
            settings: fields of the teacher's configuration, without `weights`.
            label, variants: registry name the checkpoint must be, and the architectures by name.
        """
        timestep = snap_sigma(settings.get("sigma", TeacherConfig.sigma))[0]
        folder = folder or _download(self.source, timestep, self.prompt_embeds is None)
        checkpoint = open_wan(folder, timestep)
        if label is not None:
            require_architecture(checkpoint, label, variants or {})
        vace = checkpoint.kind == "vace"
        config = (VaceConfig if vace else TeacherConfig)(weights="", **settings)
        depth = _depth(config, checkpoint)
        prompt = empty_prompt(folder, checkpoint.config["text_dim"], self.prompt_embeds)
        if self.random_weights is None:
            transformer, weights = checkpoint.transformer(self.dtype, depth), _weights(checkpoint, prompt)
        else:
            transformer, weights = self._randomised(checkpoint.randomised(self.random_weights))
        kind = VaceTeacher if vace else Teacher
        parts = (transformer, checkpoint.vae(), prompt, replace(config, weights=weights))
        return self.devices.place(kind, *parts, **self.options)

    def embedded(self, settings: dict[str, Any]) -> Teacher:
        """From the bundle in this repository."""
        from teacher.tiny.bundle import BUNDLE, embedded_settings, load_bundle_wan

        variant = self.source
        transformer, vae = load_bundle_wan(variant)
        weights = weights_identity(BUNDLE / variant) + weights_identity(BUNDLE / "vae")
        if self.random_weights is not None:
            with torch.random.fork_rng():
                torch.manual_seed(self.random_weights)
                transformer = WanTransformer3DModel.from_config(transformer.config)
            transformer, weights = self._randomised(transformer)
        config = TeacherConfig(**(embedded_settings(variant) | {"weights": weights} | settings))
        prompt = torch.zeros(1, transformer.config.text_dim)
        return self.devices.place(Teacher, _cast(transformer, self.dtype), vae, prompt, config, **self.options)

    def _randomised(self, transformer: WanTransformer3DModel) -> tuple[WanTransformer3DModel, str]:
        return _cast(transformer, self.dtype), f"random-{self.random_weights}"


def _depth(config: TeacherConfig, checkpoint: WanCheckpoint) -> int:
    """Blocks that are needed; settings that cannot work are refused before gigabytes are read."""
    layers = checkpoint.config["num_layers"]
    if not config.blocks or any(not -layers <= block < layers for block in config.blocks):
        raise UserError(f"blocks {config.blocks}: indices in 0..{layers - 1} (or negative from the end) expected")
    multiple = checkpoint.vae_config.get("scale_factor_spatial", 8) * checkpoint.config["patch_size"][1]
    if any(side <= 0 or side % multiple for side in config.size):
        raise UserError(f"size {config.size}: both sides must be positive multiples of {multiple} for this teacher")
    return max(block % layers for block in config.blocks) + 1


def _weights(checkpoint: WanCheckpoint, prompt: Tensor) -> str:
    """Identity of everything read from disk: the transformer in use, the VAE and the prompt's encoding."""
    rows = prompt.float().cpu()
    return fingerprint([identity(checkpoint.files), list(rows.shape), rows.numpy().tobytes().hex()])


def weights_identity(folder: Path) -> str:
    """Hash of names, sizes and the first and last MiB of every weight file in a folder: quick also for tens of GB."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".pth", ".pt"))
    return identity((str(path.relative_to(folder)), path) for path in files)


def _download(hub_id: str, timestep: int, prompt: bool) -> Path:
    def complete(folder: Path) -> bool:
        try:
            open_wan(folder, timestep)
        except UserError:
            return False
        return not prompt or can_make(folder)

    folder = cached(hub_id, complete)
    if folder is not None:
        return folder
    unused = unused_expert(fetch(hub_id, CONFIGS), timestep)
    return fetch(hub_id, (*WEIGHTS, *(ENCODER if prompt else ())), [f"{unused}/*"] if unused else [])


def _cast(model: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """In `dtype`, but for what diffusers keeps in float32 whatever the precision (norms, modulation, time embedding)."""
    for name, weight in model.named_parameters():
        if not set(name.split(".")) & set(model._keep_in_fp32_modules):
            weight.data = weight.data.to(dtype)
    return model
