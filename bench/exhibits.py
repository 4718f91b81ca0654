"""What a report shows besides its numbers: arrays for the pictures and words about how they came to be.

Place in the chain: `vega-edge demo` (or any benchmark) saves a `ReportPictures` and a `ReportNotes` beside report.json;
`bench/report.py` draws them. Arrays go into one safetensors file whose header holds the little that is not an array.
    python -c "from bench.exhibits import ReportPictures; print(ReportPictures.load('DIR').frames.shape)"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bench.schema import MODELS
from vega_artifact import UserError, atomic_write, canonical, read_json, unknown_name, write_json

PICTURES = "pictures.safetensors"
NOTES = "notes.json"
VIEW_LIMIT = 8
# Only these live in the teacher's feature space; a shared PCA basis means nothing for any other model.
SHARED_SPACE = ("teacher", "teacher_reseeded", "student", "student_exported", "student_undistilled")


@dataclass(frozen=True)
class Matches:
    """Points of one view looked for in another.

    Attributes:
        view_a, view_b: indices into `ReportPictures.frames`.
        points_a: (K, 2) float32, x and y in pixels of view a.
        found: model -> (K, 2) float32, where that model's features put each point in view b.
        hits: model -> (K,) bool, whether that place is right, as the recall metric counts it.
    """

    view_a: int
    view_b: int
    points_a: np.ndarray
    found: dict[str, np.ndarray]
    hits: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        count = len(self.points_a)
        expect(self.points_a.shape == (count, 2) and count > 0, "matches.points_a", "(K, 2) with K > 0", self.points_a.shape)
        expect(self.found.keys() == self.hits.keys(), "matches.hits", f"models {sorted(self.found)}", sorted(self.hits))
        for model in self.found:
            known_model(model)
            expect(self.found[model].shape == (count, 2), f"matches.found[{model}]", f"({count}, 2)", self.found[model].shape)
            expect(self.hits[model].shape == (count,), f"matches.hits[{model}]", f"({count},)", self.hits[model].shape)


@dataclass(frozen=True)
class ReportPictures:
    """Arrays of a few test views, N <= 8; only `frames` is required, every other exhibit is left out when empty.

    Attributes:
        frames: (N, H, W, 3) uint8.
        captions: N short texts, e.g. "room 7, frame 3".
        features: model -> (N, C, gh, gw) float; models of the teacher's feature space, "teacher" among them.
        gates: (N, 1, gh, gw) float in 0..1; 1 takes the semantic stream, 0 the generative one.
        depth: (N, H, W) float, metres along the optical axis, 0 = invalid.
        depth_predictions: model -> (N, h, w) float, metres, on any grid.
        matches: correspondences between two of the views.
        curves: stage ("student", "teacher", ...) -> rows of its training log, each with a "step".
    """

    frames: np.ndarray
    captions: tuple[str, ...] = ()
    features: dict[str, np.ndarray] = field(default_factory=dict)
    gates: np.ndarray | None = None
    depth: np.ndarray | None = None
    depth_predictions: dict[str, np.ndarray] = field(default_factory=dict)
    matches: Matches | None = None
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.frames.shape
        expect(self.frames.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3, "frames", "uint8 (N, H, W, 3)", shape)
        views = shape[0]
        expect(1 <= views <= VIEW_LIMIT, "frames", f"1 to {VIEW_LIMIT} views", views)
        expect(len(self.captions) in (0, views), "captions", f"{views} texts", len(self.captions))
        check_features(self.features, views)
        if self.gates is not None:
            expect(
                self.gates.ndim == 4 and self.gates.shape[:2] == (views, 1), "gates", f"({views}, 1, gh, gw)", self.gates.shape
            )
            finite("gates", self.gates)
            expect(
                self.gates.min() >= 0 and self.gates.max() <= 1, "gates", "values in 0..1", (self.gates.min(), self.gates.max())
            )
        if self.depth is not None:
            expect(self.depth.shape == shape[:3], "depth", f"{shape[:3]}", self.depth.shape)
            finite("depth", self.depth)
        for model, prediction in self.depth_predictions.items():
            known_model(model)
            expect(self.depth is not None, "depth", "the ground truth beside depth_predictions", None)
            expect(
                prediction.ndim == 3 and len(prediction) == views,
                f"depth_predictions[{model}]",
                f"({views}, h, w)",
                prediction.shape,
            )
            finite(f"depth_predictions[{model}]", prediction)
        if self.matches is not None:
            inside = all(0 <= view < views for view in (self.matches.view_a, self.matches.view_b))
            expect(inside, "matches", f"views below {views}", (self.matches.view_a, self.matches.view_b))

    def save(self, folder: Path | str) -> Path:
        """Write `folder/pictures.safetensors` atomically and return its path."""
        tensors: dict[str, np.ndarray] = {"frames": self.frames}
        tensors |= {f"features/{model}": value.astype(np.float32) for model, value in self.features.items()}
        tensors |= {f"depth_predictions/{model}": value.astype(np.float32) for model, value in self.depth_predictions.items()}
        for name in ("gates", "depth"):
            if (value := getattr(self, name)) is not None:
                tensors[name] = value.astype(np.float32)
        header: dict[str, Any] = {"captions": self.captions, "curves": self.curves}
        if self.matches is not None:
            header["views"] = [self.matches.view_a, self.matches.view_b]
            tensors["points_a"] = self.matches.points_a.astype(np.float32)
            tensors |= {f"found/{model}": value.astype(np.float32) for model, value in self.matches.found.items()}
            tensors |= {f"hits/{model}": value.astype(np.uint8) for model, value in self.matches.hits.items()}
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        path = Path(folder) / PICTURES
        atomic_write(path, lambda temporary: save_file(tensors, temporary, {"exhibits": json.dumps(canonical(header))}))
        return path

    @classmethod
    def load(cls, folder: Path | str) -> ReportPictures | None:
        """Read what `save` wrote; None when the folder holds no pictures.

        Raises:
            UserError: the file is truncated, of another origin, or its arrays do not fit together.
        """
        path = Path(folder) / PICTURES
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="np") as source:
                header = json.loads((source.metadata() or {})["exhibits"])
                tensors = {name: source.get_tensor(name) for name in source.keys()}
            return from_tensors(tensors, header)
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise UserError(
                f"{path}: not the pictures of a report ({error}); run the benchmark that writes them again"
            ) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


@dataclass(frozen=True)
class ReportNotes:
    """Words the rows cannot hold.

    Attributes:
        teacher: name of the teacher bundle.
        supervision: "generative" (trained on video only) or "auxiliary" (also shown depth or position); it is said in the hero.
        scenes: what the numbers were measured on, e.g. "40 procedural test rooms no training has seen".
        shows, does_not_show: plain sentences for the last section.
        retained: rows {metric, value, low, high, n} of bench.probes: the kept share of the teacher's gain over raw patches.
        chance: task -> type -> score in percent of answering at random.
        banner: a warning above everything (made-up data, an unfinished run); None for a real report.
    """

    teacher: str
    supervision: str
    scenes: str = ""
    shows: tuple[str, ...] = ()
    does_not_show: tuple[str, ...] = ()
    retained: tuple[dict[str, Any], ...] = ()
    chance: dict[str, dict[str, float]] = field(default_factory=dict)
    banner: str | None = None

    def __post_init__(self) -> None:
        if self.supervision not in ("generative", "auxiliary"):
            raise unknown_name("supervision", self.supervision, ("generative", "auxiliary"))

    def save(self, folder: Path | str) -> Path:
        path = Path(folder) / NOTES
        write_json(path, asdict(self))
        return path

    @classmethod
    def load(cls, folder: Path | str) -> ReportNotes | None:
        """Read `folder/notes.json`; None when there is none, UserError when it has unknown or missing fields."""
        path = Path(folder) / NOTES
        if not path.exists():
            return None
        raw = read_json(path)
        known = [item.name for item in fields(cls)]
        if not isinstance(raw, dict) or (set(raw) - set(known)) or not {"teacher", "supervision"} <= set(raw):
            raise UserError(
                f"{path}: an object with teacher, supervision and any of {', '.join(known[2:])} expected; correct what wrote it"
            )
        return cls(**{**raw, **{name: tuple(raw[name]) for name in ("shows", "does_not_show", "retained") if name in raw}})


def from_tensors(tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> ReportPictures:
    def group(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    matches = None
    if "views" in header:
        hits = {model: value.astype(bool) for model, value in group("hits/").items()}
        matches = Matches(
            view_a=header["views"][0], view_b=header["views"][1], points_a=tensors["points_a"], found=group("found/"), hits=hits
        )
    return ReportPictures(
        frames=tensors["frames"],
        captions=tuple(header["captions"]),
        features=group("features/"),
        gates=tensors.get("gates"),
        depth=tensors.get("depth"),
        depth_predictions=group("depth_predictions/"),
        matches=matches,
        curves=header["curves"],
    )


def check_features(features: Mapping[str, np.ndarray], views: int) -> None:
    if not features:
        return
    expect("teacher" in features, "features", "the teacher, whose basis all share", sorted(features))
    reference = features["teacher"].shape
    for model, value in features.items():
        if model not in SHARED_SPACE:
            raise unknown_name("model in the teacher's feature space", model, SHARED_SPACE)
        expect(value.ndim == 4 and len(value) == views, f"features[{model}]", f"({views}, C, gh, gw)", value.shape)
        expect(value.shape == reference, f"features[{model}]", f"the teacher's {reference}", value.shape)
        finite(f"features[{model}]", value)


def known_model(name: str) -> None:
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)


def expect(right: bool, name: str, expected: str, found: Any) -> None:
    if not right:
        raise UserError(f"report pictures: {name}: {expected} expected, found {found}; correct what collects them")


def finite(name: str, value: np.ndarray) -> None:
    expect(bool(np.isfinite(value).all()), name, "finite numbers", "NaN or infinity")


def model_order(names: Iterable[str]) -> list[str]:
    """Models in the order in which every table and picture shows them."""
    return sorted(names, key=MODELS.index)
