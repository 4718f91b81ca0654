"""The lmms-eval plug-in, driven by the real harness on a small local task file; skipped where lmms-eval is not installed."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vega_artifact import UserError

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed (pip install lmms-eval); the plug-in is for its users")
plug = importlib.import_module("bench.lmms")


TASK = """\
task: vega_rooms
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function rooms.visual
doc_to_text: "question"
doc_to_target: "truth"
generation_kwargs: {{max_new_tokens: 4, until: ["<"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


class Brightness:
    """A reader that says how bright its tokens are, after how many words it was allowed and what it was asked."""

    def answer(self, tokens: torch.Tensor, prompts: list[str], max_new_tokens: int) -> list[str]:
        return [f"{float(tokens.mean()):.0f} {max_new_tokens} {prompts[0]}<end"]


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    """Two videos of one grey each."""
    import av

    names = []
    for grey in (40, 200):
        name = str(tmp_path / f"{grey}.mp4")
        with av.open(name, "w") as container:
            stream = container.add_stream("libx264", rate=5, options={"crf": "1"})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(10):
                picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey, np.uint8), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        names.append(name)
    return names


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the clips whose tokens were asked for; tokens are the mean brightness."""
    seen: list[tuple[int, ...]] = []

    def tokens(clip: Any) -> np.ndarray:
        seen.append(clip.rgb.shape)
        return clip.rgb.mean(axis=(1, 2, 3), dtype=np.float32)[:, None, None, None]

    monkeypatch.setattr(plug, "student_tokens", lambda export: tokens)
    monkeypatch.setattr("teacher.tiny.bundle.load_reader", lambda condition, seed: Brightness())
    return seen


def request(number: int, videos: list[str], context: str = "<image>How bright?", count: int = 1) -> Any:
    return SimpleNamespace(args=(context, {"until": "<"}, lambda doc: [doc["video"]] * count, number, "task", "test"))


def test_each_video_is_watched_once_and_answers_keep_their_order(videos: list[str], watched: list[tuple[int, ...]]) -> None:
    model = plug.VegaEdge(export="EXPORT", frames=3, height=32)
    model.task_dict = {"task": {"test": [{"video": videos[number % 2]} for number in range(4)]}}
    found = model.generate_until([request(number, videos) for number in (1, 0, 3, 2)])
    assert [int(text.split()[0]) for text in found] == pytest.approx([200, 40, 200, 40], abs=3)
    assert [text.split(" ", 1)[1] for text in found] == ["16 How bright?"] * 4
    assert watched == [(3, 32, 32, 3)] * 2


def test_the_harness_itself_drives_it(videos: list[str], watched: list[tuple[int, ...]], tmp_path: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    MODEL_REGISTRY_V2.register_manifest(plug.manifest(), overwrite=True)
    rows = [{"question": "How bright?", "video": name, "truth": "200 4 How bright?"} for name in videos]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "rooms.yaml").write_text(TASK.format(questions=tmp_path / "questions.json"))
    (folder / "rooms.py").write_text('def visual(doc):\n    return [doc["video"]]\n')
    found = simple_evaluate(
        model="vega_edge",
        model_args="export=EXPORT,frames=2",
        tasks=["vega_rooms"],
        batch_size=1,
        task_manager=TaskManager(include_path=str(folder)),
        bootstrap_iters=0,
    )
    assert found["results"]["vega_rooms"]["exact_match,none"] == pytest.approx(0.5)
    assert len(watched) == 2


def test_tokens_of_an_embedded_teacher_reach_the_embedded_reader(videos: list[str]) -> None:
    model = plug.VegaEdge(teacher="tiny-geometry", frames=2, height=64)
    model.task_dict = {"task": {"test": [{"video": videos[0]}]}}
    (text,) = model.generate_until([request(0, videos)])
    assert isinstance(text, str)


def test_refusals(videos: list[str], watched: list[tuple[int, ...]]) -> None:
    for given in ({}, {"export": "E", "teacher": "tiny"}):
        with pytest.raises(UserError, match="either export=FOLDER or teacher=NAME"):
            plug.VegaEdge(**given)
    with pytest.raises(UserError, match="device='cuda'"):
        plug.VegaEdge(export="E", device="cuda")
    model = plug.VegaEdge(export="E")
    model.task_dict = {"task": {"test": [{"video": videos[0]}]}}
    with pytest.raises(UserError, match="document 0 shows 2 visuals"):
        model.generate_until([request(0, videos, count=2)])
    with pytest.raises(UserError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(UserError, match="generate_until"):
        model.generate_until_multi_round([])
