"""lmms-eval plug-in: that harness drives our reader, with tokens of the teacher or of the exported student.

Beside bench/parity.py, for those who trust another harness's prompts and scores. The harness finds the model through the entry
point `lmms_eval.models` of this package; it must be installed by the user (pip install lmms-eval), nothing here needs it.

    lmms-eval --model vega_edge --model_args export=EXPORT --tasks vsibench --log_samples --output_path results
    lmms-eval --model vega_edge --model_args teacher=tiny-geometry --tasks vsibench --log_samples --output_path results

Written for lmms-eval 0.7.3: `lmms_eval.api.model.lmms` and `lmms_eval.models.registry_v2.ModelManifest`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from torch import Tensor

from vega_artifact import UserError

if TYPE_CHECKING:
    from teacher.scenes import PosedClip

STREAM = "fused"
Tokens = Callable[["PosedClip"], np.ndarray]  # a clip -> float32 (T, C, gh, gw)


def manifest() -> ModelManifest:
    """What the entry point tells the harness."""
    return ModelManifest(model_id="vega_edge", simple_class_path="bench.lmms.VegaEdge")


class VegaEdge(lmms):
    """The embedded reader behind lmms-eval's `generate_until`; every document must show one video.

    Args:
        export: folder of `vega-edge export`, for the student's tokens. teacher: name of an embedded one, for its. One of both.
        seed: which of the embedded readers. frames, height: how a video is sampled, evenly, in pixels (0 = as stored).
        batch_size: accepted because the harness always gives it; questions about one video are answered together.
        device: only "cpu".

    Raises:
        UserError: neither or both of export and teacher, another device, or a reader that is not in the bundle.
    """

    is_simple = True

    def __init__(
        self,
        export: str | None = None,
        teacher: str | None = None,
        seed: int = 0,
        frames: int = 8,
        height: int = 128,
        batch_size: int | str = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        if (export is None) == (teacher is None):
            raise UserError("vega_edge: give either export=FOLDER or teacher=NAME in --model_args")
        if device not in ("cpu", "", None):
            raise UserError(f"vega_edge: device={device!r}; the embedded reader runs on the CPU, leave --device out")
        from teacher.tiny.bundle import load_reader

        self.reader = load_reader("fused", int(seed))
        self.sampling = f"frames={int(frames)}&height={int(height)}"
        self.tokens = student_tokens(Path(export)) if export else teacher_tokens(str(teacher))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers in the order of the requests; each video is watched once."""
        videos: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            videos.setdefault(self._video(request), []).append(number)
        found: dict[int, str] = {}
        for path, numbers in videos.items():
            tokens = self._watch(path)
            for number in numbers:
                context, options = requests[number].args[:2]
                found[number] = self._answer(tokens, context, options)
                self.cache_hook.add_partial("generate_until", (context, options), found[number])
        return [found[number] for number in range(len(requests))]

    def _video(self, request: Any) -> str:
        _, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if len(visuals) != 1 or not isinstance(visuals[0], str):
            raise UserError(
                f"{task}: document {doc_id} shows {len(visuals)} visuals; vega_edge reads one video file per question"
            )
        return visuals[0]

    def _watch(self, path: str) -> Tensor:
        from teacher.scenes import open_scenes

        return torch.from_numpy(self.tokens(open_scenes(f"video:{path}?{self.sampling}")[0]))

    def _answer(self, tokens: Tensor, context: str, options: dict[str, Any]) -> str:
        prompt = re.sub(r"<(image|video)>", "", context).strip()
        text = self.reader.answer(tokens, [prompt], max_new_tokens=int(options.get("max_new_tokens") or 16))[0]
        ends = options.get("until") or []
        for end in [ends] if isinstance(ends, str) else ends:
            text = text.split(end)[0]
        return text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise UserError("vega_edge answers in text only; choose a task whose output_type is generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise UserError("vega_edge answers single questions; choose a task whose output_type is generate_until")


def student_tokens(export: Path) -> Tokens:
    """Tokens of an exported student, through the runtime of the device."""
    from export.runtime import Encoder

    encoder = Encoder(export)
    if STREAM not in encoder.description.streams:
        raise UserError(f"{export}: no stream {STREAM!r} in it; export a student that learned the fused tokens")

    def tokens(clip: PosedClip) -> np.ndarray:
        found = encoder(clip.rgb)[STREAM]
        return np.ascontiguousarray(found.transpose(0, 2, 1)).reshape(len(found), -1, *encoder.description.grid)

    return tokens


def teacher_tokens(name: str) -> Tokens:
    """Fused tokens of an embedded teacher."""
    from teacher.streams import load_pipeline

    pipeline = load_pipeline(name)
    if pipeline.mixer is None:
        raise UserError(f"{name}: no fusion was trained for it; take an embedded teacher that has one, such as tiny-geometry")

    def tokens(clip: PosedClip) -> np.ndarray:
        frame_ids = None if clip.frame_ids is None else [int(frame) for frame in clip.frame_ids]
        return pipeline.streams(clip.rgb, clip.scene_id, frame_ids)[STREAM]

    return tokens
