"""What the study asks: every factor with its variants, as data; a variant changes one thing of the base recipe.

Read by `distill.study`, which trains and scores each variant; a further question is a further entry here.

    python -c "from distill.study_grid import GRID; print({name: [v.name for v in f.variants] for name, f in GRID.items()})"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vega_artifact import UserError, unknown_name

CLIP_STRIDE = 4  # frames behind one map of the video autoencoder, after the first


@dataclass(frozen=True)
class Variant:
    """One change of the base.

    Attributes:
        name: as it stands in the tables.
        change: fields of `RunConfig`.
        teacher: flags of `vega-edge extract` for the cache it learns from.
        share: part of the training clips it learns from.
        clip: its clips have so many more frames that the teacher in clip mode gives as many maps as in frame mode.
        online: the teacher answers while the student learns, no cache is read.
    """

    name: str
    change: Mapping[str, Any] = field(default_factory=dict)
    teacher: tuple[str, ...] = ()
    share: float = 1.0
    clip: bool = False
    online: bool = False

    def frames(self, frames: int) -> int:
        """Frames per training clip, where the base has `frames`."""
        return 1 + CLIP_STRIDE * (frames - 1) if self.clip else frames


@dataclass(frozen=True)
class Factor:
    """One question: what the base does, what else is tried, and what to keep in mind when reading the answer."""

    question: str
    base: str
    variants: tuple[Variant, ...]
    caveat: str = ""


BASE = Variant("base")
OWN_ROOMS = "Its validation cosine is measured on the last rooms of its own cache, so compare it with no other row."

ADAMW_FAST = {"optimizer": "adamw", "learning_rate": 0.003}

GRID: dict[str, Factor] = {
    "normalizer": Factor(
        "How are targets scaled before they are compared?",
        "standardize",
        tuple(Variant(name, {"normalizer": name}) for name in ("phi_s", "layernorm", "none")),
    ),
    "loss": Factor(
        "Which mix of losses per token?",
        "half cosine, half smooth-L1",
        (
            Variant("cosine alone", {"cosine": 1.0, "smooth_l1": 0.0}),
            Variant("smooth-L1 alone", {"cosine": 0.0, "smooth_l1": 1.0}),
            Variant("0.9 cosine, 0.1 smooth-L1", {"cosine": 0.9, "smooth_l1": 0.1}),
            Variant("squared error alone", {"cosine": 0.0, "smooth_l1": 0.0, "mse": 1.0}),
        ),
    ),
    "optimizer": Factor(
        "Is Muon worth the time that its update takes?",
        "Muon 0.02 for the hidden matrices, AdamW 0.001 for the rest",
        (Variant("AdamW alone", {"optimizer": "adamw"}), Variant("AdamW alone, rate 0.003", ADAMW_FAST)),
        "As many steps for both; what a step costs: `vega-edge bench train --optimizer adamw`.",
    ),
    "relations": Factor(
        "Do terms that compare tokens with one another help?",
        "none",
        (
            Variant("gram 0.5", {"gram": 0.5}),
            Variant("cross-view 0.5", {"cross_view": 0.5}),
            Variant("both, 0.5 each", {"gram": 0.5, "cross_view": 0.5}),
        ),
    ),
    "mode": Factor(
        "Is a teacher that sees one frame at a time the better one, or one whose frames attend to one another?",
        "frame mode",
        (Variant("clip mode", teacher=("--mode", "clip"), clip=True),),
        "As many maps per room, but the clip teacher watches four times as many frames. " + OWN_ROOMS,
    ),
    "target": Factor(
        "Is the fused stream the best first target, or the raw streams?",
        "fused first (1), generative (1) and semantic (0.25) beside it",
        (
            Variant("raw first", {"weights": {"fused": 0.25, "generative": 1.0, "semantic": 1.0}}),
            Variant("fused alone", {"weights": {"fused": 1.0, "generative": 0.0, "semantic": 0.0}}),
        ),
    ),
    "draws": Factor(
        "How many noise draws must the teacher average?",
        "4",
        tuple(Variant(str(count), teacher=("--draws", str(count))) for count in (1, 2, 8)),
        OWN_ROOMS,
    ),
    "student": Factor(
        "What does a larger student bring?",
        "vit_micro",
        (Variant("vit_tiny", {"student": "vit_tiny"}),),
    ),
    "image_size": Factor(
        "How many pixels does the student need?",
        "128",
        tuple(Variant(str(size), {"image_size": (size, size)}) for size in (64, 192)),
        "Frames are stored at 128 px: 192 enlarges them and only gives the student more tokens.",
    ),
    "source": Factor(
        "Does a student lose anything when the teacher answers on the fly?",
        "cached",
        (Variant("online", online=True),),
        "Statistics of the targets come from 16 rooms instead of all; nothing else differs.",
    ),
    "budget": Factor(
        "How many clips must the teacher watch?",
        "all",
        tuple(Variant(f"1/{part}", share=1 / part) for part in (8, 4, 2)),
        "The number of steps stays, so fewer clips are seen more often. " + OWN_ROOMS,
    ),
    "dropping": Factor(
        "Does it help to drop the streams that a frame already fits best, so that the hardest comes first?",
        "never",
        (Variant("drop 0.5", {"drop": 0.5}),),
    ),
    "crops": Factor(
        "Do crops, with the teacher's map cut alike, help?",
        "none",
        (Variant("sides of at least 0.6", {"crop": 0.6}),),
    ),
}


def chosen(only: Sequence[str]) -> dict[str, Factor]:
    """The factors of these names in the grid's order, all where none is named. Raises UserError listing the known ones."""
    for name in only:
        if name not in GRID:
            raise unknown_name("factor", name, GRID)
    return {name: factor for name, factor in GRID.items() if not only or name in only}


def clips(variant: Variant, rooms: int) -> int:
    """How many of `rooms` training rooms a variant learns from.

    Raises:
        UserError: fewer than two, of which one is for validation.
    """
    count = round(rooms * variant.share)
    if count < 2:
        raise UserError(
            f"{rooms} rooms leave {count} for the variant {variant.name!r}; give --rooms {round(2 / variant.share)} or more"
        )
    return count
