"""A small cache, questions about it and a language model: what `vega-edge fit` is tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from teacher.cache import CacheWriter
from teacher.fit import FitConfig, fit
from teacher.scenes import open_scenes
from teacher.scenes.questions import write_questions
from teacher.tutor import Parts
from tests.teacher.language_folders import qwen2

URI = "procedural:val?count=4&frames=2&size=32&seed=3"
SHORT = FitConfig(steps=4, accumulate=2, questions=4, save_every=2)


def make_rooms(work: Path) -> Path:
    """A cache whose semantic stream says red or blue, questions about it, and a language model."""
    source = open_scenes(URI)
    config = {"scenes": URI, "scenes_fingerprint": source.fingerprint}
    writer = CacheWriter(work / "cache", config, {"teacher": "t"}, source.scene_ids, 2)
    records = []
    for number, scene in enumerate(source.scene_ids):
        rng = np.random.default_rng(number)
        semantic = rng.standard_normal((2, 6, 4, 4)) + np.array([3.0, -3.0])[number % 2] * np.eye(6)[0][:, None, None]
        maps = {"semantic": semantic, "generative": 5 * rng.standard_normal((2, 8, 2, 2))}
        writer.add(scene, {name: value.astype(np.float16) for name, value in maps.items()} | {"frame_ids": np.arange(2)})
        answer = ["red", "blue"][number % 2]
        record = {"scene_id": scene, "question": "is there a red chair ?", "answers": [answer]}
        records += [record | {"question_id": f"{number}-{n}", "view": [None, 0, 1][n]} for n in range(3)]
    writer.finish()
    write_questions(work / "questions.json", records)
    qwen2(work / "qwen2")
    return work


def run(work: Path, out: Path, config: FitConfig = SHORT, **parts: object) -> Path:
    """A fit of these rooms into `out`."""
    changed = replace(config, parts=Parts(**{"reader": str(work / "qwen2"), **parts}))  # type: ignore[arg-type]
    return fit(work / "cache", [work / "questions.json"], out, changed)
