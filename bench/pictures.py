"""Pictures of features: plain arrays in, PNG bytes out, the same bytes for the same arrays.

Place in the chain: `bench/report.py` inlines these into report.html; each function also stands alone.
Maps keep the size of the token grid unless `pixels` is given: a browser enlarges them, smoothly or token by token.
    python -c "import numpy as np; from bench.pictures import pca_maps; print(pca_maps(np.random.rand(2, 16, 8, 8)).keys())"
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from bench.correspondence import answers
from bench.exhibits import Matches
from bench.geometry import CellGeometry
from vega_artifact import UserError

HIT, MISS = (0, 158, 115), (213, 94, 0)  # Okabe-Ito green and vermillion: distinguishable without red-green vision
SEMANTIC, NEUTRAL, GENERATIVE = (0, 114, 178), (246, 246, 244), (230, 159, 0)
INVALID = (205, 205, 205)
DEPTH_COLOURS = "viridis_r"  # near is bright
PHOTO_SIDE = 320
MATCH_SIDE = 300
LINE_LIMIT = 20


def png(rgb: np.ndarray, pixels: int | None = None, smooth: bool = True) -> bytes:
    """Encode (H, W, 3) uint8; `pixels` enlarges the longer side, bicubic or by repeating pixels."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if pixels is not None and pixels > max(image.size):
        factor = pixels / max(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST)
    return encode(image)


def encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def photo(rgb: np.ndarray) -> bytes:
    """A frame (H, W, 3) uint8, shrunk to at most 320 pixels a side so that the page stays small."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    return encode(image)


def pca_maps(
    teacher: np.ndarray, others: Mapping[str, np.ndarray] | None = None, pixels: int | None = None
) -> dict[str, list[bytes]]:
    """Three principal components of the teacher's tokens as red, green and blue; everyone is projected into that one basis.

    Args:
        teacher: (T, C, gh, gw) float; basis, mean and colour range come from these tokens alone.
        others: model -> (T, C, gh', gw') float in the teacher's feature space.

    Returns:
        model -> T PNG images; equal features give equal colours across models.

    Raises:
        UserError: channels differ, so there is no shared basis.
    """
    tokens = as_tokens(teacher)
    mean = tokens.mean(axis=0)
    _, _, basis = np.linalg.svd(tokens - mean, full_matrices=False)
    basis = np.pad(basis[:3], ((0, 3 - len(basis[:3])), (0, 0)))
    # The sign of a singular vector is arbitrary: fix it, so that colours do not flip between machines.
    basis *= np.where(basis[np.arange(3), np.abs(basis).argmax(axis=1)] < 0, -1.0, 1.0)[:, None]
    low, high = np.percentile((tokens - mean) @ basis.T, (2, 98), axis=0)
    pictures = {}
    for model, value in {"teacher": teacher, **(others or {})}.items():
        if value.shape[1] != teacher.shape[1]:
            counts = f"{value.shape[1]} channels, the teacher {teacher.shape[1]}"
            raise UserError(f"PCA maps: {model} has {counts}; only one feature space can share a basis")
        colours = ((as_tokens(value) - mean) @ basis.T - low) / np.maximum(high - low, 1e-12)
        grids = to_bytes(colours).reshape(value.shape[0], *value.shape[2:], 3)
        pictures[model] = [png(grid, pixels) for grid in grids]
    return pictures


def as_tokens(features: np.ndarray) -> np.ndarray:
    """(T, C, gh, gw) -> (T * gh * gw, C) float64."""
    return np.moveaxis(features, 1, -1).reshape(-1, features.shape[1]).astype(np.float64)


def to_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def centred_cosine(features: np.ndarray, teacher: np.ndarray) -> float:
    """Mean cosine between same tokens of two (T, C, gh, gw) maps after subtracting the teacher's mean token."""
    a, b = as_tokens(features), as_tokens(teacher)
    mean = b.mean(axis=0)
    a, b = a - mean, b - mean
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.maximum(norms, 1e-12)))


def gate_span(gates: np.ndarray) -> float:
    """How far the gates leave 0.5; the colour scale is symmetric around it, so that white means "half of each"."""
    return max(float(np.abs(gates - 0.5).max()), 1e-3)


def gate_overlay(rgb: np.ndarray, gate: np.ndarray, span: float = 0.5) -> bytes:
    """The gate over a darkened grey frame: blue tokens take the semantic stream, orange ones the generative stream.

    Args:
        rgb: (H, W, 3) uint8.  gate: (gh, gw) or (1, gh, gw) float in 0..1.  span: distance from 0.5 drawn in full colour.
    """
    height, width = rgb.shape[:2]
    grid = np.asarray(gate, dtype=np.float64).reshape(gate.shape[-2:])
    strength = np.clip((grid - 0.5) / span, -1, 1)[..., None]
    ends = np.where(strength > 0, np.array(SEMANTIC), np.array(GENERATIVE))
    colours = np.array(NEUTRAL) + np.abs(strength) * (ends - np.array(NEUTRAL))
    layer = Image.fromarray(np.round(colours).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grey = rgb.astype(np.float64) @ np.array((0.299, 0.587, 0.114))
    shade = 0.45 + 0.55 * grey[..., None] / 255
    return photo(np.round(np.asarray(layer, dtype=np.float64) * shade).astype(np.uint8))


def depth_range(truth: np.ndarray) -> tuple[float, float]:
    """2nd and 98th percentile of the valid metres: one colour scale for the truth and everyone who guesses it."""
    valid = truth[truth > 0]
    if not valid.size:
        raise UserError("depth pictures: no valid depth (all 0); choose views with ground truth")
    low, high = (float(value) for value in np.percentile(valid, (2, 98)))
    return low, max(high, low + 1e-3)


def depth_panel(truth: np.ndarray, predictions: Mapping[str, np.ndarray], pixels: int | None = None) -> dict[str, list[bytes]]:
    """Depth of every view in one shared colour scale.

    Args:
        truth: (N, H, W) float metres, 0 = invalid (drawn grey).  predictions: model -> (N, h, w) float metres.

    Returns:
        "truth" and each model -> N PNG images; near is bright.
    """
    low, high = depth_range(truth)
    colours = colormaps[DEPTH_COLOURS]

    def draw(depth: np.ndarray, valid: np.ndarray) -> bytes:
        rgb = to_bytes(colours((depth - low) / (high - low))[..., :3])
        rgb[~valid] = INVALID
        return png(rgb, pixels) if max(rgb.shape) <= PHOTO_SIDE else photo(rgb)

    panel = {"truth": [draw(view, view > 0) for view in truth]}
    for model, maps in predictions.items():
        panel[model] = [draw(view, np.ones(view.shape, dtype=bool)) for view in maps]
    return panel


def depth_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute error in metres over valid pixels; predictions (N, h, w) are compared where their cells' centres fall."""
    height, width = prediction.shape[1:]
    rows = ((np.arange(height) + 0.5) / height * truth.shape[1]).astype(int)
    columns = ((np.arange(width) + 0.5) / width * truth.shape[2]).astype(int)
    sampled = truth[:, rows][:, :, columns]
    return float(np.abs(prediction - sampled)[sampled > 0].mean())


def depth_gradient() -> str:
    """The same colours as CSS stops, near to far, for a legend."""
    return ", ".join("#" + bytes(to_bytes(np.array(colormaps[DEPTH_COLOURS](t)[:3]))).hex() for t in np.linspace(0, 1, 9))


def match_views(
    features: Mapping[str, np.ndarray],
    geometry: CellGeometry,
    view_a: int,
    view_b: int,
    size: tuple[int, int],
    centres: Mapping[str, np.ndarray] | None = None,
) -> Matches:
    """Where the tokens of view a are found in view b: searched and judged as the centred recall of bench/correspondence.py.

    Args:
        features: model -> (T, C, gh, gw) float of one clip, all on the grid of `geometry`.
        view_a, view_b: frames of that clip.  size: (height, width) of a frame in pixels.
        centres: model -> (C,) token to subtract, the probe's mean training token; by default the mean over this clip.

    Raises:
        UserError: the two views see no common surface, or a model has another grid.
    """
    chosen = (geometry.queries[:, 0] == view_a) & (geometry.queries[:, 2] == view_b)
    if not chosen.any():
        raise UserError(f"matches: views {view_a} and {view_b} share no visible surface; choose two that overlap")
    grid = next(iter(features.values())).shape[2:]
    cell = np.array((size[1] / grid[1], size[0] / grid[0]))
    middles = (np.stack(np.meshgrid(np.arange(grid[1]), np.arange(grid[0])), axis=-1).reshape(-1, 2) + 0.5) * cell
    found, hits = {}, {}
    for model, value in features.items():
        if value.shape[2:] != grid or grid[0] * grid[1] != geometry.candidates.shape[1]:
            cells = geometry.candidates.shape[1]
            raise UserError(f"matches: {model} has grid {value.shape[2:]}, the geometry {cells} cells; use one grid for all")
        tokens = as_tokens(value).reshape(len(value), -1, value.shape[1])
        centre = centres[model] if centres is not None else tokens.mean(axis=(0, 1))
        best = answers(tokens, geometry, centre)[chosen]
        found[model] = middles[best].astype(np.float32)
        hits[model] = geometry.right[chosen, best]
    return Matches(view_a, view_b, middles[geometry.queries[chosen, 1]].astype(np.float32), found, hits)


def correspondence_lines(
    rgb_a: np.ndarray, rgb_b: np.ndarray, points_a: np.ndarray, found: np.ndarray, hits: np.ndarray
) -> bytes:
    """Two views side by side; solid green lines end at the right place, dashed vermillion ones do not.

    Args:
        rgb_a, rgb_b: (H, W, 3) uint8.  points_a, found: (K, 2) float, x and y in pixels.  hits: (K,) bool.
        At most 20 lines are drawn, evenly spread over the K.
    """
    factor = 2 * MATCH_SIDE / max(rgb_a.shape[:2])
    views = [Image.fromarray(rgb) for rgb in (rgb_a, rgb_b)]
    views = [view.resize((round(view.width * factor), round(view.height * factor)), Image.Resampling.BICUBIC) for view in views]
    gap = 24
    canvas = Image.new("RGB", (views[0].width + gap + views[1].width, max(view.height for view in views)), "white")
    canvas.paste(views[0], (0, 0))
    canvas.paste(views[1], (views[0].width + gap, 0))
    draw = ImageDraw.Draw(canvas)
    chosen = np.unique(np.linspace(0, len(points_a) - 1, min(LINE_LIMIT, len(points_a))).round().astype(int))
    for index in sorted(chosen, key=lambda item: bool(hits[item])):  # hits last, so that misses do not cover them
        start = points_a[index] * factor
        end = found[index] * factor + np.array((views[0].width + gap, 0))
        draw_match(draw, start, end, bool(hits[index]))
    return encode(canvas)


def draw_match(draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, hit: bool) -> None:
    colour, length = HIT if hit else MISS, float(np.linalg.norm(end - start))
    direction = (end - start) / max(length, 1e-6)
    dash, period = (length, length + 1) if hit else (18.0, 34.0)
    for under, width in (("white", 9), (colour, 6)):  # a white edge keeps lines visible on any texture
        for begin in np.arange(0, length, period):
            piece = (start + direction * begin, start + direction * min(begin + dash, length))
            draw.line([tuple(point) for point in piece], fill=under, width=width)
    for x, y in (start, end):
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=colour, outline="white", width=2)
