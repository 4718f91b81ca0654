"""CogVideoX: a video diffusion transformer the reference does not have (arXiv 2408.06072).

python -c "from teacher.rivals import load_rival; load_rival('cogvideox-2b', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Tensor

from teacher.rivals.base import RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.schedules import VariancePreserving
from teacher.rivals.video_dit import VideoTransformer
from vega_artifact import UserError


class CogVideoX(VideoTransformer):
    """CogVideoX 2b and 5b; 1920 channels after each of 30 blocks in 2b.

    Args:
        prompt: (1, 226, text width) encoding of the empty prompt; its padding takes part in attention, as in training.
    """

    def __init__(
        self,
        config: RivalConfig,
        transformer: CogVideoXTransformer3DModel,
        vae: AutoencoderKLCogVideoX,
        prompt: Tensor,
        alphas_cumprod: Tensor,
        device: str | torch.device = "cpu",
    ) -> None:
        if transformer.config.patch_size_t is not None or transformer.config.in_channels != vae.config.latent_channels:
            raise UserError(f"{config.name}: a text-to-video CogVideoX 1.0 expected (2b or 5b), this is 1.5 or image-to-video")
        super().__init__(
            config,
            transformer,
            vae,
            VariancePreserving(alphas_cumprod, config.sigma),
            stacks=["transformer_blocks"],
            group=int(vae.config.temporal_compression_ratio),
            stride=2 ** (len(vae.config.block_out_channels) - 1),
            patch=transformer.config.patch_size,
            device=device,
        )
        self.prompt = prompt.to(self.device, transformer.dtype)
        # only for the rotary positions, which diffusers computes in the pipeline
        self.pipeline = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=None)

    def normalised(self, latents: Tensor) -> Tensor:
        return latents * self.vae.config.scaling_factor

    def run(self, noisy: Tensor, time: Tensor) -> object:
        rotary = None
        if self.transformer.config.use_rotary_positional_embeddings:
            stride = self.multiple // self.patch
            height, width = (side * stride for side in noisy.shape[3:])
            rotary = self.pipeline._prepare_rotary_positional_embeddings(height, width, noisy.shape[1], self.device)
        prompt = self.prompt.expand(len(noisy), -1, -1)
        return self.transformer(noisy, encoder_hidden_states=prompt, timestep=time, image_rotary_emb=rotary)


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> CogVideoX:
    """Read transformer/, vae/, scheduler/ and, once, the text encoder."""
    transformer = folder.network("transformer", CogVideoXTransformer3DModel)
    vae = folder.part("vae", AutoencoderKLCogVideoX)
    text = folder.text(CogVideoXPipeline, ("transformer", "vae", "scheduler"))
    with torch.no_grad():
        prompt, _ = text.encode_prompt(
            "",
            do_classifier_free_guidance=False,
            max_sequence_length=transformer.config.max_text_seq_length,
            device=torch.device("cpu"),
        )
    return CogVideoX(config, transformer, vae, prompt, folder.schedule(CogVideoXDDIMScheduler), device)
