"""Which variant of Wan a checkpoint is, by its configs and its tensors' shapes, and which variants are refused and why.

Second step of loading a teacher, before any weight is read. What Wan's own config does not say is taken from the shapes, and
what a config does say is checked against them, so small models of the same architecture are fine and mixed-up ones are not.

    python -c "from pathlib import Path; from teacher.variants import native_config; print(native_config(Path('config.json')))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from teacher.weights import Weights, open_safetensors, open_torch
from vega_artifact import UserError, read_json

LATENT_CHANNELS, STRIDE = 16, 8
KINDS = {"t2v": WanTransformer3DModel, "vace": WanVACETransformer3DModel}
CLASSES = {model.__name__: kind for kind, model in KINDS.items()}
NATIVE_NAMES = {
    "width": "dim",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "vace_in_channels": "vace_in_dim",
}
TI2V = (
    "this is Wan2.2 TI2V-5B, whose VAE has 48 channels at stride 16; teachers here need the 16-channel, stride-8 VAE of Wan2.1 "
    "(T2V-1.3B, T2V-14B, VACE, Wan2.2 T2V-A14B)"
)


def diffusers_config(source: Path) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of a diffusers transformer from its config.json; a UserError says why a variant is refused."""
    config = read_json(source)
    name = config.get("_class_name")
    if name not in CLASSES:
        raise UserError(f"{source}: _class_name {' or '.join(CLASSES)} expected, found {name!r}; is it another model?")
    _require_text_only(source, config.get("in_channels", LATENT_CHANNELS), "in_channels")
    if config.get("image_dim") is not None:
        raise UserError(
            f"{source}: image_dim null expected, found {config['image_dim']}; image-to-video models are no teachers"
        )
    return CLASSES[name], {key: value for key, value in config.items() if not key.startswith("_")}


def native_config(source: Path) -> tuple[str, dict[str, Any]]:
    """Kind and diffusers arguments (`width` among them) from Wan's own config.json; refuses as `diffusers_config`."""
    config = read_json(source)
    kind = config.get("model_type")
    if kind == "ti2v":
        raise UserError(f"{source}: {TI2V}")
    if kind not in KINDS:
        raise UserError(f"{source}: model_type 't2v' or 'vace' expected, found {kind!r}; such models are no teachers")
    wanted = {name: native for name, native in NATIVE_NAMES.items() if name != "vace_in_channels" or kind == "vace"}
    fields = {**dict.fromkeys(wanted.values()), "eps": None} | ({"vace_layers": None} if kind == "vace" else {})
    missing = [field for field in fields if field not in config]
    if missing:
        raise UserError(f"{source}: field {missing[0]} is missing; copy the checkpoint's own config.json")
    _require_text_only(source, config["in_dim"], "in_dim")
    given = {name: config[native] for name, native in wanted.items()} | {"eps": config["eps"]}
    if given["width"] % given["num_attention_heads"]:
        raise UserError(f"{source}: dim {config['dim']} is no multiple of num_heads {config['num_heads']}; is it edited?")
    given["attention_head_dim"] = given["width"] // given["num_attention_heads"]
    return kind, given | ({"vace_layers": config["vace_layers"]} if kind == "vace" else {})


def _require_text_only(source: Path, channels: int, field: str) -> None:
    if channels == 3 * LATENT_CHANNELS:
        raise UserError(f"{source}: {field} {LATENT_CHANNELS} expected, found {channels}; {TI2V}")
    if channels != LATENT_CHANNELS:
        raise UserError(
            f"{source}: {field} {LATENT_CHANNELS} expected, found {channels}; "
            "models that take an image or a signal beside the frames are no teachers"
        )


def measured(weights: Weights) -> dict[str, Any]:
    """Architecture as the tensors' shapes have it, in diffusers' names (and `width`)."""
    shapes = weights.shapes
    try:
        patch = shapes["patch_embedding.weight"]
        found: dict[str, Any] = {
            "width": patch[0],
            "in_channels": patch[1],
            "patch_size": tuple(patch[2:]),
            "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "out_channels": shapes["proj_out.weight"][0] // math.prod(patch[2:]),
            "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{weights.where}: no Wan transformer ({error} is missing); is it another model?") from error
    if "vace_patch_embedding.weight" in shapes:
        found["vace_in_channels"] = shapes["vace_patch_embedding.weight"][1]
        found["number of vace_layers"] = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("vace_blocks."))
    return found


def agreed(source: Path, given: dict[str, Any], found: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Config and weights as one set of arguments; raises where they contradict each other."""
    claimed = dict(given)
    claimed.setdefault("width", given.get("num_attention_heads", 0) * given.get("attention_head_dim", 0))
    if "vace_layers" in given:
        claimed["number of vace_layers"] = len(given["vace_layers"])
    for field, value in found.items():
        expected = claimed.get(field, value)
        if (tuple(expected) if isinstance(expected, list) else expected) != value:
            raise UserError(
                f"{source}: {names.get(field, field)} {expected} expected by this config, found {value} in the weights; "
                "one of the two is of another variant, copy both from one checkpoint"
            )
    extra = ("width", "number of vace_layers")
    return {key: value for key, value in (found | given).items() if key not in extra}


def diffusers_vae(folder: Path) -> tuple[dict[str, Any], Weights]:
    """Arguments and weights of a diffusers VAE folder; another model's VAE is a UserError that names the field."""
    config = read_json(folder / "config.json")
    expected = {"_class_name": "AutoencoderKLWan", "z_dim": LATENT_CHANNELS, "scale_factor_spatial": STRIDE}
    for field, value in expected.items():
        found = config.get(field, value)
        if found != value:
            advice = TI2V if found == 3 * LATENT_CHANNELS else "it is the VAE of another model"
            raise UserError(f"{folder / 'config.json'}: {field} {value} expected, found {found}; {advice}")
    return {key: value for key, value in config.items() if not key.startswith("_")}, open_safetensors(folder)


def native_vae(path: Path) -> tuple[dict[str, Any], Weights]:
    """Arguments and weights of `Wan2.1_VAE.pth`; a file that holds something else is a UserError."""
    weights = open_torch(path).renamed(convert_wan_vae_to_diffusers)
    first, quant = weights.shapes.get("encoder.conv_in.weight"), weights.shapes.get("quant_conv.weight")
    if first is None or quant is None:
        raise UserError(
            f"{path}: no VAE of Wan ({'encoder.conv1' if first is None else 'conv1'}.weight is missing); copy Wan's own"
        )
    if quant[0] != 2 * LATENT_CHANNELS:
        raise UserError(
            f"{path}: {LATENT_CHANNELS} latent channels expected, found {quant[0] // 2}; is it another model's VAE?"
        )
    return {"base_dim": first[0]}, weights
