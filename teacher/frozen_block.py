"""One transformer block of the simulator, with everything folded in that one noise level and one prompt make constant.

Place in the chain: `teacher.simulator` stacks them. Exact identities, no approximation:
- LayerNorm followed by a constant scale and shift is a LayerNorm with that weight and bias;
- the text keys and values are constants, so cross-attention is two thin matrix products: the logits of all heads at once
  against a block-diagonal key matrix, and the probabilities against values that have passed the output projection already.

    python -c "from teacher import load_teacher; print(load_teacher('tiny').simulator.blocks[0])"
"""

from __future__ import annotations

import copy
import math

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on interleaved pairs: x (B, L, heads, d), cos and sin (1, L, 1, d/2) in float32."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


class FrozenBlock(nn.Module):
    """A Wan block at a fixed timestep and text; weights are shared with `block`, constants are float32.

    Args:
        block: diffusers block, in float32 or bfloat16.
        modulation: (1, 6, C) projected time embedding, to which the block's own table is added.
        context: (1, R, C) text rows after the text MLP.
        bias: (R,) added to every logit of a row: ln(n) for a row that stands for n equal ones.
    """

    def __init__(self, block: WanTransformerBlock, modulation: Tensor, context: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.attn1, self.ffn, self.eps = block.attn1, block.ffn, block.norm1.eps
        self.text_query, self.text_norm = block.attn2.to_q, block.attn2.norm_q
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table.float() + modulation)[0].detach()
        constants = {"scale": 1 + scale, "shift": shift, "gate": gate}
        constants |= {"ffn_scale": 1 + ffn_scale, "ffn_shift": ffn_shift, "ffn_gate": ffn_gate}
        norm = block.norm2  # an identity in variants without a norm before the text
        self.text_normed = isinstance(norm, nn.LayerNorm)
        if self.text_normed:
            constants |= {"text_scale": norm.weight.detach().float(), "text_shift": norm.bias.detach().float()}
        constants |= fold_text(block.attn2, context, bias)
        for name, value in constants.items():
            self.register_buffer(name, value.contiguous(), persistent=False)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Residual stream (B, L, C) float32 -> the same after the block; cos and sin as in `rotate`."""
        width, dtype = hidden.shape[-1:], self.attn1.to_q.weight.dtype
        x = F.layer_norm(hidden, width, self.scale, self.shift, self.eps).to(dtype)
        hidden = torch.addcmul(hidden, self._attend(x, cos, sin).float(), self.gate)

        x = F.layer_norm(hidden, width, self.text_scale, self.text_shift, self.eps) if self.text_normed else hidden
        hidden = hidden + self._read_text(x.to(dtype))

        x = F.layer_norm(hidden, width, self.ffn_scale, self.ffn_shift, self.eps).to(dtype)
        return torch.addcmul(hidden, self.ffn(x).float(), self.ffn_gate)

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention = self.attn1
        query = rotate(attention.norm_q(attention.to_q(x)).unflatten(2, (attention.heads, -1)), cos, sin)
        key = rotate(attention.norm_k(attention.to_k(x)).unflatten(2, (attention.heads, -1)), cos, sin)
        value = attention.to_v(x).unflatten(2, (attention.heads, -1))
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))

    def _read_text(self, x: Tensor) -> Tensor:
        """Cross-attention to the constant text rows, logits and probabilities in float32."""
        query = self.text_norm(self.text_query(x)).float()
        logits = F.linear(query, self.text_key, self.text_logit)
        share = logits.unflatten(-1, (self.attn1.heads, -1)).softmax(dim=-1).flatten(-2)
        return F.linear(share, self.text_value, self.text_out)


@torch.no_grad()
def fold_text(attention: WanAttention, context: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Cross-attention's constants for text rows (1, R, C), in float32.

    Returns:
        text_key (heads R, C): every head's scaled keys on that head's channels, zero elsewhere; text_logit (heads R,);
        text_value (C, heads R): every head's values after the output projection; text_out (C,).
    """
    to_k, norm_k, to_v, to_out = (
        copy.deepcopy(part).float() for part in (attention.to_k, attention.norm_k, attention.to_v, attention.to_out[0])
    )
    heads = attention.heads
    key = norm_k(to_k(context))[0].unflatten(1, (heads, -1)).transpose(0, 1)  # (heads, R, d)
    value = to_v(context)[0].unflatten(1, (heads, -1)).transpose(0, 1)
    projection = to_out.weight.unflatten(1, (heads, -1)).transpose(0, 1)  # (heads, C, d)
    return {
        "text_key": torch.block_diag(*(key / math.sqrt(key.shape[-1]))),
        "text_logit": bias.repeat(heads),
        "text_value": (projection @ value.transpose(1, 2)).transpose(0, 1).flatten(1),
        "text_out": to_out.bias,
    }
