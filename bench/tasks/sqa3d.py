"""SQA3D scorer: exact match per question type under three protocols, and the repository's own lenient matcher.

End of the downstream chain (reader -> answers -> score -> intervals -> report). Never compare across protocols:

    vega3d                  clean_answer on both sides, exact match (VEGA-3D@9c96924, Video-3D-LLM)
    leo                     the same, matched by LEO's loop, plus em_refined and n-gram metrics (embodied-generalist@567f2d8)
    llava3d                 as leo with membership instead of the loop, no n-gram metrics (ZCMax/LLaVA-3D@91d979d)
    sqa3d_official_lenient  only the prediction is cleaned; part of the truth, or any shared word, is right (SQA3D@a98da8f)

    python -c "from bench.tasks import sqa3d; \
               print(sqa3d.score({'1': 'yes'}, [{'question_id': 1, 'question': 'Is it on?', 'answers': ['yes']}])['metrics'])"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.tasks.answers import clean_answer, match_any, match_first, note_refined
from bench.tasks.captions import Scores, caption_metrics
from bench.tasks.records import Item, count, field, join
from vega_artifact import UserError, unknown_name

TYPES = ("what", "is", "how", "can", "which", "others")  # by the first letters of the question, "others" for the rest
MATCH = {"vega3d": match_any, "leo": match_first, "llava3d": match_any}
PROTOCOLS = (*MATCH, "sqa3d_official_lenient")
# What the references add to the number of questions of a type, lest they divide by zero: it shows in the tenth digit.
# LEO adds it once for the run and once for its (here single) batch.
EPSILON = {"leo": 2e-10, "llava3d": 1e-10}
EMPTY_IS_RIGHT = "empty answers count as right, since nothing is part of everything"


def score(
    predictions: Mapping[Any, str | None],
    annotations: Sequence[Mapping[str, Any]],
    protocol: str = "vega3d",
    with_meteor: bool = True,
) -> dict[str, Any]:
    """Score answers to SQA3D questions.

    Args:
        predictions: question_id -> raw generated text.
        annotations: SQA3D's questions joined to their answers (question_id, question, answers; scene_id is passed on). The
            answers may be texts or the benchmark's {"answer": text, ...}, a single one may stand under `answer`; the
            published test set has exactly one each.
        with_meteor: False leaves METEOR out (protocol leo), whose Java process takes seconds to start.

    Returns:
        metrics: percent (CIDEr times 100): em, and em_what .. em_others for the types present; em_refined likewise (leo,
            llava3d); bleu1..bleu4, rouge_l, cider, meteor (leo); accuracy (sqa3d_official_lenient, whose em is plain
            equality of the cleaned prediction with the raw truth).
        per_item: id -> {the same names: value as the libraries give it, "type", "scene", "prediction"}.
        notes: n, hashes, counts, warnings, missing, and "strict" as in bench/tasks/scanqa.py.

    Raises:
        UserError: unknown protocol, missing or duplicate ids, a record without question or answer.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("SQA3D protocol", protocol, PROTOCOLS)
    items, notes = join(predictions, annotations, "question_id", "sqa3d", protocol)
    notes["missing"] = {}
    kinds = [question_type(field(item, "question", "sqa3d")) for item in items]
    texts = [clean_answer(item.text) for item in items]
    truths = [_answers(item) for item in items]
    labels, captions = _labels(texts, truths, protocol, with_meteor, notes)
    metrics = _per_type(labels, kinds, EPSILON.get(protocol, 0.0)) | {
        name: 100 * value for name, (value, _) in captions.items()
    }
    values = {name: column.tolist() for name, column in labels.items()} | {name: rows for name, (_, rows) in captions.items()}
    rows = {
        item.key: {name: column[index] for name, column in values.items()}
        | {"type": kinds[index], "scene": item.record.get("scene_id"), "prediction": item.text}
        for index, item in enumerate(items)
    }
    return {"metrics": metrics, "per_item": rows, "notes": notes}


def question_type(question: str) -> str:
    """One of TYPES, by literal prefix as in all stacks: "Island" counts as "is"."""
    start = question.lstrip().lower()
    return next((kind for kind in TYPES[:-1] if start.startswith(kind)), TYPES[-1])


def lenient(text: str, truth: str) -> bool:
    """The repository's matcher: equal to the truth, part of it (with or without white space), or any word in common."""
    part = text in truth or "".join(text.split()) in "".join(truth.split())
    return part or bool(set(text.split()) & set(truth.split()))


def _labels(
    texts: Sequence[str], truths: Sequence[Sequence[str]], protocol: str, with_meteor: bool, notes: dict[str, Any]
) -> tuple[dict[str, np.ndarray], Scores]:
    """Label name -> (N,) 0/1, and the caption metrics of the protocols that have some."""
    if protocol == "sqa3d_official_lenient":
        right = np.array([lenient(text, truth[0]) for text, truth in zip(texts, truths)])
        empty = np.array([not text.strip() for text in texts])
        count(notes, "empty_rewarded", int((right & empty).sum()), EMPTY_IS_RIGHT)
        notes["strict"] = {"accuracy": 100 * float((right & ~empty).mean())}
        exact = np.array([text == truth[0] for text, truth in zip(texts, truths)], dtype=float)
        return {"em": exact, "accuracy": right.astype(float)}, {}
    cleaned = [[clean_answer(answer) for answer in answers] for answers in truths]
    matches = np.array([MATCH[protocol](text, answers) for text, answers in zip(texts, cleaned)], dtype=float)
    if protocol == "vega3d":
        return {"em": matches[:, 0]}, {}
    note_refined(notes, texts, cleaned, matches)
    captions = caption_metrics(texts, cleaned, notes, ptb=False, with_meteor=with_meteor) if protocol == "leo" else {}
    return {"em": matches[:, 0], "em_refined": matches[:, 1]}, captions


def _per_type(labels: Mapping[str, np.ndarray], kinds: Sequence[str], epsilon: float) -> dict[str, float]:
    """Percent, overall and per type."""
    metrics = {}
    for name, values in labels.items():
        metrics[name] = 100 * float(values.mean())
        for kind in TYPES:
            member = np.array([found == kind for found in kinds])
            if member.any():
                metrics[f"{name}_{kind}"] = 100 * float(values[member].sum() / (member.sum() + epsilon))
    return metrics


def _answers(item: Item) -> list[str]:
    """The reference answers as texts."""
    found = item.record.get("answers", item.record.get("answer"))
    listed = found if isinstance(found, list) else [found]
    given = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in listed]
    texts = [text for text in given if isinstance(text, str)]
    if not texts or len(texts) < len(given):
        expected = "a non-empty list of texts or of SQA3D's {'answer': text}"
        raise UserError(f"sqa3d: question {item.key!r} needs 'answers' as {expected}, found {found!r}")
    return texts
