"""Correspondence recall: does the nearest token of another view look at the same place in the room?

One of the 3D probes of bench/probes.py. For every token whose surface point is really visible in another frame, the most
similar token (cosine) of that frame is a hit when it lies within 0.5 m. Ties share the credit, so that constant features score
exactly chance. Centred means that the mean training token is subtracted first: features with a big mean look alike everywhere.

    from bench.correspondence import recall_statistics
    recall_statistics(tokens, geometry)      # (3, 2): all, far, chance; each hits and queries
"""

from __future__ import annotations

import numpy as np

from bench.geometry import CellGeometry

TIE = 1e-6  # cosines closer than this are equal in single precision
ALL, FAR, CHANCE = range(3)


def unit(tokens: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    """Tokens (..., C) less `centre` (C,), at unit length; what is zero up to rounding stays zero. float32."""
    if centre is None:
        shifted, floor = tokens.astype(np.float32), 1e-12
    else:
        shifted = (tokens - centre).astype(np.float32)
        floor = 1e-6 * float(np.sqrt(np.mean(np.square(tokens, dtype=np.float64).sum(-1)))) + 1e-12
    norm = np.linalg.norm(shifted, axis=-1, keepdims=True)
    return np.where(norm > floor, shifted / np.maximum(norm, floor), 0)


def recall_statistics(tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None = None) -> np.ndarray:
    """Hits and queries of one scene.

    Args:
        tokens: float (T, N, C); geometry: the same clip on the same grid; centre: (C,) to subtract, or None.

    Returns:
        float64 (3, 2): rows for all queries, for those at least two cells away, and for a random answer to all of them; columns
        hits and queries.
    """
    credit = hit_credit(tokens, geometry, centre)
    open_cells = geometry.candidates[geometry.queries[:, 2]]
    chance = geometry.right.sum(1) / np.maximum(open_cells.sum(1), 1)
    return np.array(
        [
            [credit.sum(), len(credit)],
            [credit[geometry.far].sum(), geometry.far.sum()],
            [chance.sum(), len(chance)],
        ]
    )


def hit_credit(tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None = None) -> np.ndarray:
    """float64 (Q,) in 0..1: the share of the most similar candidates that are right."""
    credit = np.zeros(len(geometry.queries))
    for where, tied in _nearest(tokens, geometry, centre):
        credit[where] = (tied & geometry.right[where]).sum(1) / tied.sum(1)
    return credit


def answers(tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None = None) -> np.ndarray:
    """int64 (Q,): the cell of frame j each query is matched to (the first of several equal ones); for pictures."""
    cells = np.zeros(len(geometry.queries), dtype=np.int64)
    for where, tied in _nearest(tokens, geometry, centre):
        cells[where] = tied.argmax(1)
    return cells


def _nearest(tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None):
    """Per frame j: indices (K,) of its queries and which cells are most similar, bool (K, N)."""
    directions = unit(tokens, centre)
    frame, cell, target = geometry.queries.T
    for j in np.unique(target):
        where = np.flatnonzero(target == j)
        similarity = directions[frame[where], cell[where]] @ directions[j].T
        similarity[:, ~geometry.candidates[j]] = -np.inf
        yield where, similarity >= similarity.max(1, keepdims=True) - TIE


def mean_token(scenes: list[np.ndarray]) -> np.ndarray:
    """float64 (C,): mean over all tokens of all scenes (T, N, C); the centre of the centred scores."""
    total = sum(tokens.sum((0, 1), dtype=np.float64) for tokens in scenes)
    return total / sum(tokens.shape[0] * tokens.shape[1] for tokens in scenes)
