"""Fusion weights out of published VEGA-3D checkpoints: which tensors they are, under which names, and what shape they tell.

Both code branches keep the fusion inside the language model's own state dict. Only the tensors asked for are read, so a folder
of a 7B model costs a few megabytes. Names: spec/vega3d.md 5.2 and 5.4, and H-EmbodVis/VEGA-3D, `llava/model/llava_arch.py` and
`src/qwen_vl/model/modeling_qwen2_5_vl.py`.

    python -c "from teacher.published import load_published; print(load_published('VEGA-3D-Spatial-Reasoning'))"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from teacher.fusion import Fusion, create_fusion
from teacher.merger import Merger, load_merger
from teacher.streams import projector
from vega_artifact import UserError

SPATIAL = {"merger": "generative_merger.", "fusion": "generative_fusion."}
SCENE = {
    "semantic_projector": "model.mm_projector.",
    "generative_projector": "model.generative_projector.",
    "fusion": "model.feature_fusion.",
    "newline": "model.image_newline",
}
OLDER = {"weight_3d": "weight_gen"}  # the spatial-reasoning branch's name of a parameter -> ours


@dataclass(frozen=True)
class Published:
    """What a checkpoint holds beside its language model; float tensors as stored.

    Attributes:
        branch: "spatial" (merger and fusion after Qwen2.5-VL's tower) or "scene" (two projectors, fusion, row newline).
        method: the fusion's name in `teacher.fusion.FUSIONS`.
        newline: (D,) or None.
    """

    branch: str
    method: str
    fusion: Fusion
    merger: Merger | None = None
    semantic_projector: nn.Sequential | None = None
    generative_projector: nn.Sequential | None = None
    newline: Tensor | None = None


def load_published(folder: Path | str) -> Published:
    """Read the generative parts of a checkpoint folder with *.safetensors, of one or many shards.

    Raises:
        UserError: no safetensors in the folder, an unreadable file, none of the names, or weights of an unknown fusion.
    """
    return from_state(read_parts(Path(folder)), folder)


def read_parts(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder whose names belong to a generative branch."""
    wanted = (*SPATIAL.values(), *SCENE.values())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no .safetensors file in it; give the folder of a published checkpoint")
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as shard:
                state |= {name: shard.get_tensor(name) for name in shard.keys() if name.startswith(wanted)}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error
    return state


def from_state(state: dict[str, Tensor], where: Path | str = "state dict") -> Published:
    """The same from tensors by their published names."""
    spatial = {part: _below(state, prefix) for part, prefix in SPATIAL.items()}
    if spatial["merger"]:
        merger = load_merger(spatial["merger"])
        fusion, method = _fusion(spatial["fusion"], merger.mlp[2].out_features, where)
        return Published("spatial", method, fusion, merger=merger)
    scene = {part: _below(state, prefix) for part, prefix in SCENE.items()}
    if not scene["generative_projector"] or not scene["semantic_projector"]:
        expected = f"{SPATIAL['merger']}* or {SCENE['generative_projector']}* with {SCENE['semantic_projector']}*"
        raise UserError(f"{where}: no generative branch in it, tensors {expected} expected; give a VEGA-3D checkpoint")
    first, second = (_projector(scene[part]) for part in ("semantic_projector", "generative_projector"))
    fusion, method = _fusion(scene["fusion"], second[2].out_features, where)
    newline = state.get(SCENE["newline"])
    return Published("scene", method, fusion, semantic_projector=first, generative_projector=second, newline=newline)


def method_of(state: dict[str, Tensor], where: Path | str = "state dict") -> str:
    """Which fusion has exactly these parameters; the names and the gate's rows tell, nothing in the file says it.

    Add and generative-only both have none; add is what the released code means by an empty module.
    """
    if not state:
        return "add"
    if "weight_2d" in state:
        return "weighted"
    if "projection.weight" in state:
        return "concat"
    if "context_scale" in state:
        return "context_gated"
    if "residual_scale" in state:
        return "token_gated_residual"
    if "gate_projection.0.weight" in state:
        return "token_gated" if len(state["gate_projection.0.weight"]) == 1 else "gated"
    if any(name.startswith("cross_attn_blocks.") for name in state):
        return "cross_attention"
    raise UserError(f"{where}: a fusion with the tensors {', '.join(sorted(state)[:4])} is none of ours")


def _fusion(state: dict[str, Tensor], width: int, where: Path | str) -> tuple[Fusion, str]:
    state = {OLDER.get(name, name): value for name, value in state.items()}
    method = method_of(state, where)
    layers = 1 + max((int(name.split(".")[1]) for name in state if name.startswith("cross_attn_blocks.")), default=0)
    fusion = create_fusion(method, width, **({"num_layers": layers} if method == "cross_attention" else {}))
    try:
        fusion.load_state_dict(state, assign=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: its {method} fusion does not fit a width of {width} ({problem})") from error
    return fusion, method


def _projector(state: dict[str, Tensor]) -> nn.Sequential:
    width, channels = state["0.weight"].shape
    module = projector(channels, width)
    module.load_state_dict(state, assign=True)
    return module


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
