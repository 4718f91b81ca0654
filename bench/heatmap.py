"""A picture of a search: block against sigma, one row of panels per mode, as PNG bytes that do not change between runs.

Left the score less that of the shipped setting on the same rooms (settings that dropped out saw fewer rooms, which this makes
comparable); right VEGA-3D's un-centred voxel score and its random-pair control, on one scale. Place in the chain: drawn by
`vega-edge select` from its rows; the style is that of bench/charts.py.

    python -c "from bench.heatmap import heatmap; from vega_artifact import read_json; r = read_json('OUT/selection.json'); \
               open('map.png', 'wb').write(heatmap(r['rows'], r['best'], r['default']))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from bench.charts import INK, STYLE, finish
from vega_artifact import UserError

Row = Mapping[str, Any]
PANELS = (("score less default", "gain"), ("VEGA voxel score", "voxel_consistency"), ("VEGA, random pairs", "voxel_random"))


def heatmap(rows: Sequence[Row], best: Row, default: Row) -> bytes:
    """Draw a search.

    Args:
        rows: of the search, with "gain", the score less that of the default setting on the same rooms.
        best, default: the winner's and the shipped setting's row; framed solid and dashed.

    Raises:
        UserError: no rows.
    """
    if not rows:
        raise UserError("heat-map: no setting was scored; give the rows of selection.json")
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    blocks, sigmas = (sorted({row[name] for row in rows}) for name in ("block", "sigma"))
    gain = max(max(abs(row["gain"]) for row in rows), 1e-3)
    scales = {"gain": ("RdBu", -gain, gain), "voxel_consistency": ("viridis", 0.0, 1.0), "voxel_random": ("viridis", 0.0, 1.0)}
    size = (1.2 + 3 * (0.55 * len(sigmas) + 1.1), len(modes) * (0.36 * len(blocks) + 1.0))
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "font.size": 9}):
        figure, axes = pyplot.subplots(len(modes), len(PANELS), figsize=size, squeeze=False, layout="constrained")
        for line, mode in enumerate(modes):
            for column, (title, name) in enumerate(PANELS):
                place = axes[line, column]
                colours, low, high = scales[name]
                image = place.imshow(_table(rows, mode, name, blocks, sigmas), colours, aspect="auto", vmin=low, vmax=high)
                _label(place, image, rows, mode, name, blocks, sigmas)
                for row, dashes in ((default, "--"), (best, "-")):
                    _frame(place, row, mode, blocks, sigmas, dashes)
                place.set_title(f"{title}\n{mode} mode", fontsize=9)
                if line == len(modes) - 1:
                    place.set_xlabel("sigma")
                if column == 0:
                    place.set_ylabel("block")
                figure.colorbar(image, ax=place, fraction=0.08)
        return finish(figure)


def _table(rows: Sequence[Row], mode: str, name: str, blocks: Sequence[int], sigmas: Sequence[float]) -> np.ndarray:
    table = np.full((len(blocks), len(sigmas)), np.nan)
    for row in rows:
        if row["mode"] == mode and row[name] is not None:
            table[blocks.index(row["block"]), sigmas.index(row["sigma"])] = row[name]
    return table


def _label(
    place: Axes, image: AxesImage, rows: Sequence[Row], mode: str, name: str, blocks: Sequence[int], sigmas: Sequence[float]
) -> None:
    place.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
    place.set_yticks(range(len(blocks)), [str(block) for block in blocks])
    for row in rows:
        if row["mode"] == mode and row[name] is not None:
            text = f"{row[name]:+.3f}" if name == "gain" else f"{row[name]:.2f}"
            where = sigmas.index(row["sigma"]), blocks.index(row["block"])
            bright = np.dot(image.to_rgba(np.array([row[name]]))[0, :3], (0.2126, 0.7152, 0.0722)) > 0.4
            place.text(*where, text, ha="center", va="center", fontsize=6.5, color=INK if bright else "white")


def _frame(place: Axes, row: Row, mode: str, blocks: Sequence[int], sigmas: Sequence[float], dashes: str) -> None:
    if row["mode"] == mode:
        corner = sigmas.index(row["sigma"]) - 0.5, blocks.index(row["block"]) - 0.5
        place.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=2, linestyle=dashes))
