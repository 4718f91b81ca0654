"""ScanQA scorer: the four protocols whose numbers papers mix up, each under its own name.

End of the downstream chain (reader -> answers -> score -> intervals -> report). "CIDEr on ScanQA" differs by a factor of two
between them, so never compare across protocols:

    vega3d           raw texts, trailing full stops stripped for the n-gram metrics only (VEGA-3D@9c96924, Video-3D-LLM)
    scanqa_official  raw exact match; PTB tokens for the n-gram metrics, needs Java (ATR-DBI/ScanQA@0a9f162)
    leo              clean_answer, exact match decided by the first reference that matches at all (embodied-generalist@567f2d8)
    llava3d          clean_answer, then PTB tokens for the n-gram metrics, needs Java (ZCMax/LLaVA-3D@91d979d)

    python -c "from bench.tasks import scanqa; \
               print(scanqa.score({'q': 'brown'}, [{'question_id': 'q', 'answers': ['brown']}]))"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.tasks.answers import clean_answer, match_any, match_first, note_refined
from bench.tasks.captions import Scores, caption_metrics
from bench.tasks.records import Item, answers_of, count, join
from vega_artifact import unknown_name


@dataclass(frozen=True)
class Protocol:
    """How one code base compares: `clean` for both sides before matching, `strip` for predictions before the n-grams."""

    clean: Callable[[str], str]
    match: Callable[[str, Sequence[str]], tuple[int, int]]
    strip: str = ""
    ptb: bool = False
    refined: bool = False


def _raw(text: str) -> str:
    return text


PROTOCOLS = {
    "vega3d": Protocol(_raw, match_any, strip="."),
    "scanqa_official": Protocol(_raw, match_any, ptb=True),
    "leo": Protocol(clean_answer, match_first, refined=True),
    "llava3d": Protocol(clean_answer, match_any, ptb=True, refined=True),
}
OFFICIAL_ONLY = {  # metrics of scanqa_official that are never made up here
    "em_top10": "a reader gives one answer; the ten best exist for classifiers only",
    "f_value": "needs the WordNet corpus",
    "spice": "needs Stanford's scene-graph models",
}


def score(
    predictions: Mapping[Any, str | None],
    annotations: Sequence[Mapping[str, Any]],
    protocol: str = "vega3d",
    with_meteor: bool = True,
) -> dict[str, Any]:
    """Score answers to ScanQA questions.

    Args:
        predictions: question_id -> raw generated text (official top-10 lists: give the first).
        annotations: ScanQA's records (question_id, answers; scene_id is passed on). Score a corpus as a whole: CIDEr depends
            on which questions are in it.
        with_meteor: False leaves METEOR out, whose Java process takes about ten seconds to start.

    Returns:
        metrics: percent (CIDEr times 100, as VEGA-3D prints it): em, em_refined (leo, llava3d), bleu1..bleu4, rouge_l, cider,
            meteor. What cannot be computed is left out and named in notes["missing"] with the reason.
        per_item: id -> {the same names: value as the libraries give it (em 0/1, n-grams 0..1, cider 0..10), "scene",
            "prediction"}. bleu and meteor of a corpus are not the means of these.
        notes: n, hashes, counts, warnings, missing. Where the reference rewards nonsense its number is reproduced, the
            items are counted, and "strict" holds the value with those items at 0.

    Raises:
        UserError: unknown protocol, missing or duplicate ids, a record without answers.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("ScanQA protocol", protocol, PROTOCOLS)
    rules = PROTOCOLS[protocol]
    items, notes = join(predictions, annotations, "question_id", "scanqa", protocol)
    texts = [rules.clean(item.text) for item in items]
    answers = [[rules.clean(answer) for answer in answers_of(item, "scanqa")] for item in items]
    matches = np.array([rules.match(text, references) for text, references in zip(texts, answers)], dtype=float)
    scores: Scores = {"em": (float(matches[:, 0].mean()), matches[:, 0].tolist())}
    notes["missing"] = {}
    if rules.refined:
        scores["em_refined"] = float(matches[:, 1].mean()), matches[:, 1].tolist()
        note_refined(notes, texts, answers, matches)
    else:
        notes["missing"]["em_refined"] = f"the {protocol} protocol has none"
    if protocol == "scanqa_official":
        notes["missing"] |= OFFICIAL_ONLY
        sentence = "answers hold no word: the reference divides by zero there (F-value) and scores nothing at all"
        count(notes, "reference_fails", sum(not text.split() for text in texts), sentence)
    texts = [text.rstrip(rules.strip) if rules.strip else text for text in texts]
    scores |= caption_metrics(texts, answers, notes, rules.ptb, with_meteor)
    return {
        "metrics": {name: 100 * value for name, (value, _) in scores.items()},
        "per_item": {item.key: _row(item, index, scores) for index, item in enumerate(items)},
        "notes": notes,
    }


def _row(item: Item, index: int, scores: Scores) -> dict[str, Any]:
    values = {name: items[index] for name, (_, items) in scores.items()}
    return values | {"scene": item.record.get("scene_id"), "prediction": item.text}
