"""Finds and reads Wan checkpoints: diffusers folders (transformer/, vae/) and Wan's native layout, sharded or not.

| checkpoint | layouts | taken |
|---|---|---|
| Wan2.1 T2V 1.3B, 14B | both | yes |
| Wan2.1 VACE 1.3B, 14B | both | yes, by `teacher.vace` |
| Wan2.2 T2V A14B | both | the expert for the wanted sigma: high noise from the boundary (0.875) up, low noise below |
| Wan2.2 TI2V 5B | both | refused: its VAE has 48 channels at stride 16, and this teacher's recipe is made for 16 at stride 8 |
| image-to-video and others | both | refused: they need an image or a signal beside the frames |

Native layout: config.json, diffusion_pytorch_model*.safetensors and Wan2.1_VAE.pth; A14B has the first two in low_noise_model/
and high_noise_model/. Key conversion is diffusers' own. What the native config does not say is read from the weights' shapes,
and what it does say is checked against them, so small models of the same architecture load too.

    python -c "from teacher.loading import open_wan; print(open_wan('PATH').config)"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from teacher.variants import (
    KINDS,
    NATIVE_NAMES,
    TI2V,
    agreed,
    diffusers_config,
    diffusers_vae,
    measured,
    native_config,
    native_vae,
)
from teacher.weights import Weights, fill, open_safetensors
from vega_artifact import UserError, read_json

NATIVE_VAE = "Wan2.1_VAE.pth"
WAN22_VAE = "Wan2.2_VAE.pth"
STEPS = 1000
BOUNDARY = 0.875  # Wan2.2's own t2v_A14B configuration; diffusers writes it as boundary_ratio
EXPERTS = {False: ("transformer_2", "low_noise_model"), True: ("transformer", "high_noise_model")}  # high noise -> folders


@dataclass(frozen=True)
class WanCheckpoint:
    """An opened checkpoint: configs and tensor shapes are known and checked, no weight is read yet.

    Attributes:
        kind: "t2v" or "vace".
        source: the transformer's config.json.
        config: arguments of the diffusers transformer class.
        expert: "low noise" or "high noise" of an A14B checkpoint, else "".
    """

    root: Path
    kind: str
    source: Path
    config: dict[str, Any]
    weights: Weights
    vae_config: dict[str, Any]
    vae_weights: Weights
    expert: str = ""

    @property
    def files(self) -> list[tuple[str, Path]]:
        """(name, path) of every weight file that is read."""
        return [(path.name, path) for path in (*self.weights.files, *self.vae_weights.files)]

    def transformer(self, dtype: torch.dtype = torch.float32, depth: int | None = None) -> WanTransformer3DModel:
        """Read the transformer in `dtype`; blocks from `depth` on are neither built nor read.

        What diffusers keeps in float32 whatever the precision (time embedding, modulation tables, norms) stays so.
        """
        with init_empty_weights(include_buffers=False):  # rotary tables are computed, not read
            model = KINDS[self.kind].from_config(self.config)
        depth = len(model.blocks) if depth is None else depth
        model.blocks = model.blocks[:depth]
        weights = self.weights.only(lambda name: not (name.startswith("blocks.") and int(name.split(".")[1]) >= depth))
        if self.kind == "vace":
            hints = sum(layer < depth for layer in self.config["vace_layers"])
            model.vace_blocks = model.vace_blocks[:hints]
            weights = weights.only(lambda name: not (name.startswith("vace_blocks.") and int(name.split(".")[1]) >= hints))
        return fill(model, weights, dtype, model._keep_in_fp32_modules)

    def randomised(self, seed: int) -> WanTransformer3DModel:
        """The same architecture in float32 with fresh weights of this seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return KINDS[self.kind].from_config(self.config)

    def vae(self) -> AutoencoderKLWan:
        """Read the VAE, in float32."""
        with init_empty_weights(include_buffers=False):
            model = AutoencoderKLWan.from_config(self.vae_config)
        return fill(model, self.vae_weights, torch.float32)


def open_wan(path: Path | str, timestep: int = 0) -> WanCheckpoint:
    """Open a folder of either layout and check that its parts belong together.

    Args:
        timestep: 0..999 of Wan's schedule; chooses the expert where there are two.
    Raises:
        UserError: no known layout, an unsupported variant, a foreign VAE, a missing or truncated file, or a config that its
            weights contradict; the file and the field are named.
    """
    root = Path(path)
    folder, expert = _transformer_folder(root, timestep)
    native = not (root / "vae" / "config.json").exists()
    source = folder / "config.json"
    if native:
        kind, given = native_config(source)
        weights = open_safetensors(folder).renamed(convert_wan_transformer_to_diffusers)
        vae_config, vae_weights = native_vae(root / NATIVE_VAE)
    else:
        kind, given = diffusers_config(source)
        weights = open_safetensors(folder)
        vae_config, vae_weights = diffusers_vae(root / "vae")
    config = agreed(source, given, measured(weights), NATIVE_NAMES if native else {})
    return WanCheckpoint(root, kind, source, config, weights, vae_config, vae_weights, expert)


def load_wan(path: Path | str, dtype: torch.dtype = torch.float32) -> tuple[WanTransformer3DModel, AutoencoderKLWan]:
    """Load the whole transformer (in `dtype`) and the VAE (float32) from either layout.

    Raises:
        UserError: as `open_wan`, or non-finite weights.
    """
    checkpoint = open_wan(path)
    return checkpoint.transformer(dtype), checkpoint.vae()


def require_architecture(checkpoint: WanCheckpoint, name: str, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a checkpoint that is not the variant the user named; the first differing field is named.

    Args:
        known: registry name -> architecture fields (`kind`, `experts` and diffusers config names).
    """
    found = {"kind": checkpoint.kind, "experts": 2 if checkpoint.expert else 1} | checkpoint.config
    for field, expected in known[name].items():
        if found[field] != expected:
            fitting = [other for other, fields in known.items() if all(found.get(key) == fields[key] for key in fields)]
            advice = (
                f"it looks like {' or '.join(fitting)}" if fitting else "it is another variant: give the folder without a name"
            )
            raise UserError(f"{checkpoint.source}: {field} {expected} expected for {name}, found {found[field]}; {advice}")


def unused_expert(root: Path, timestep: int) -> str | None:
    """Name of the expert's folder that is not needed at `timestep`, where `root` has the configs of two experts."""
    for layout in (0, 1):
        if (root / EXPERTS[False][layout] / "config.json").exists():
            return EXPERTS[not _is_high(root, timestep)][layout]
    return None


def _is_high(root: Path, timestep: int) -> bool:
    index = root / "model_index.json"
    boundary = (read_json(index).get("boundary_ratio") if index.exists() else None) or BOUNDARY
    return timestep >= boundary * STEPS


def _transformer_folder(root: Path, timestep: int) -> tuple[Path, str]:
    """The folder of the transformer (of the expert for `timestep`) and the expert's name."""
    if (root / WAN22_VAE).exists() and not (root / NATIVE_VAE).exists():
        raise UserError(f"{root / WAN22_VAE}: {TI2V}")
    layout = 0 if (root / "vae" / "config.json").exists() else 1
    if (root / EXPERTS[False][layout]).is_dir():
        high = _is_high(root, timestep)
        folder, expert = root / EXPERTS[high][layout], "high noise" if high else "low noise"
        if not (folder / "config.json").exists():
            raise UserError(f"{folder}: missing; at timestep {timestep} the {expert} expert is needed, copy this folder too")
        return folder, expert
    folder = root if layout else root / "transformer"
    if not (folder / "config.json").exists() or (layout and not (root / NATIVE_VAE).exists()):
        raise UserError(
            f"{root}: no Wan teacher here; expected a diffusers folder (transformer/, vae/) or Wan's own files "
            f"(config.json, diffusion_pytorch_model*.safetensors, {NATIVE_VAE})"
        )
    return folder, ""
