"""Very small checkpoints of every rival, in the published layouts, with random weights: what the tests of rivals load.

python -c "from pathlib import Path; from tests.teacher.rival_folders import BUILDERS; BUILDERS['sd2.1'](Path('/tmp/sd'))"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

TEXT_WIDTH = 16
SIZES = {  # pixels that fill a grid of 2 x 4 or, for square ones, 2 x 2
    "sd2.1": (32, 64),
    "svd": (32, 64),
    "sd-vae": (16, 32),
    "wan-vae": (16, 32),
    "dinov3-l": (32, 64),
    "vjepa2-g": (32, 32),
    "cogvideox-2b": (32, 64),
    "ltx-video": (64, 128),
    "hunyuan-video": (32, 64),
}


def _tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=8
    )


def _t5(folder: Path) -> None:
    config = transformers.T5Config(d_model=TEXT_WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=8)
    transformers.T5EncoderModel(config).save_pretrained(folder / "text_encoder")
    _tokenizer().save_pretrained(folder / "tokenizer")


def _clip_text(folder: Path, name: str, width: int) -> None:
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=8,
        max_position_embeddings=77,
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=0,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder / name)


def _index(folder: Path, name: str, parts: dict[str, tuple[str, str]]) -> None:
    from vega_artifact import write_json

    write_json(folder / "model_index.json", {"_class_name": name, "_diffusers_version": diffusers.__version__, **parts})


def _image_vae(kind: Any) -> Any:
    options: dict[str, Any] = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
    if kind is diffusers.AutoencoderKL:
        options |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4}
    else:
        options["block_out_channels"] = (32, 32)  # this class has no choice of groups
    return kind(layers_per_block=1, **options)


def stable_diffusion(folder: Path) -> None:
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    _image_vae(diffusers.AutoencoderKL).save_pretrained(folder / "vae")
    diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    _clip_text(folder, "text_encoder", TEXT_WIDTH)
    _tokenizer().save_pretrained(folder / "tokenizer")
    parts = {"text_encoder": ("transformers", "CLIPTextModel"), "tokenizer": ("transformers", "PreTrainedTokenizerFast")}
    parts |= {"unet": ("diffusers", "UNet2DConditionModel"), "vae": ("diffusers", "AutoencoderKL")}
    parts["scheduler"] = ("diffusers", "PNDMScheduler")
    _index(folder, "StableDiffusionPipeline", parts)


def stable_video(folder: Path) -> None:
    torch.manual_seed(0)
    diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=(2, 2, 2, 2),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    ).save_pretrained(folder / "unet")
    _image_vae(diffusers.AutoencoderKLTemporalDecoder).save_pretrained(folder / "vae")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=TEXT_WIDTH,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")


def stable_autoencoder(folder: Path) -> None:
    torch.manual_seed(0)
    _image_vae(diffusers.AutoencoderKL).save_pretrained(folder / "vae")


def wan_autoencoder(folder: Path) -> None:
    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1).save_pretrained(folder / "vae")


def dinov3(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.DINOv3ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_register_tokens=4
    )
    transformers.DINOv3ViTModel(config).save_pretrained(folder)


def vjepa2(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=3,
        crop_size=64,
        frames_per_clip=4,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        num_labels=3,
        num_pooler_layers=1,
    )
    transformers.VJEPA2ForVideoClassification(config).save_pretrained(folder)  # as the published one: a head on the encoder


def cogvideox(folder: Path, **changes: Any) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 3,
        "time_embed_dim": 8,
        "text_embed_dim": TEXT_WIDTH,
        "max_text_seq_length": 4,
        "sample_width": 4,
        "sample_height": 4,
        "sample_frames": 5,
    }
    diffusers.CogVideoXTransformer3DModel(**(options | changes)).save_pretrained(folder / "transformer")
    diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=16
    ).save_pretrained(folder / "vae")
    diffusers.CogVideoXDDIMScheduler().save_pretrained(folder / "scheduler")
    _t5(folder)
    parts = {"text_encoder": ("transformers", "T5EncoderModel"), "tokenizer": ("transformers", "PreTrainedTokenizerFast")}
    parts |= {"transformer": ("diffusers", "CogVideoXTransformer3DModel"), "vae": ("diffusers", "AutoencoderKLCogVideoX")}
    _index(folder, "CogVideoXPipeline", parts | {"scheduler": ("diffusers", "CogVideoXDDIMScheduler")})


def ltx_video(folder: Path) -> None:
    torch.manual_seed(0)
    diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=3,
        caption_channels=TEXT_WIDTH,
    ).save_pretrained(folder / "transformer")
    diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    ).save_pretrained(folder / "vae")
    _t5(folder)
    parts = {"text_encoder": ("transformers", "T5EncoderModel"), "tokenizer": ("transformers", "PreTrainedTokenizerFast")}
    parts |= {"transformer": ("diffusers", "LTXVideoTransformer3DModel"), "vae": ("diffusers", "AutoencoderKLLTXVideo")}
    _index(folder, "LTXPipeline", parts | {"scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler")})


def hunyuan_video(folder: Path) -> None:
    torch.manual_seed(0)
    diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    ).save_pretrained(folder / "transformer")
    diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2
    ).save_pretrained(folder / "vae")
    config = transformers.LlamaConfig(
        hidden_size=TEXT_WIDTH, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=8
    )
    transformers.LlamaModel(config).save_pretrained(folder / "text_encoder")
    _tokenizer().save_pretrained(folder / "tokenizer")
    _clip_text(folder, "text_encoder_2", 8)
    _tokenizer().save_pretrained(folder / "tokenizer_2")
    parts = {"text_encoder": ("transformers", "LlamaModel"), "tokenizer": ("transformers", "PreTrainedTokenizerFast")}
    parts |= {"text_encoder_2": ("transformers", "CLIPTextModel"), "tokenizer_2": ("transformers", "PreTrainedTokenizerFast")}
    parts |= {"transformer": ("diffusers", "HunyuanVideoTransformer3DModel")}
    parts |= {"vae": ("diffusers", "AutoencoderKLHunyuanVideo"), "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler")}
    _index(folder, "HunyuanVideoPipeline", parts)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd2.1": stable_diffusion,
    "svd": stable_video,
    "sd-vae": stable_autoencoder,
    "wan-vae": wan_autoencoder,
    "dinov3-l": dinov3,
    "vjepa2-g": vjepa2,
    "cogvideox-2b": cogvideox,
    "ltx-video": ltx_video,
    "hunyuan-video": hunyuan_video,
}
