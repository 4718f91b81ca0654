"""VSI-Bench scorer: three protocols, exact on their published behaviour, that do not crash where those crash.

End of the downstream chain (reader -> answers -> score -> intervals -> report). Sources: vision-x-nyu/thinking-in-space@51e089c
("official"), H-EmbodVis/VEGA-3D@ca64583 ("vega3d"), lmms-eval 0.7.3 ("lmms_eval"), `lmms_eval/tasks/vsibench/utils.py` of each.

    python -c "from bench.tasks import vsibench; print(vsibench.score({7: '4'}, [{'id': 7, 'question_type': \
               'object_counting', 'ground_truth': '5'}]))"
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.tasks.records import Item, count, field, join
from vega_artifact import unknown_name

PROTOCOLS = ("official", "vega3d", "lmms_eval")
DIRECTION = "object_rel_direction"
DIRECTION_LEVELS = tuple(f"{DIRECTION}_{level}" for level in ("easy", "medium", "hard"))
CHOICE_TYPES = (*DIRECTION_LEVELS, "object_rel_distance", "route_planning", "obj_appearance_order")
NUMERIC_TYPES = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
# The eight tasks of the macro mean.
TASK_TYPES = (*NUMERIC_TYPES, "object_rel_distance", DIRECTION, "route_planning", "obj_appearance_order")

# Written exactly so: relative errors of 20 % and 45 % fall on the wrong side of a threshold in float64, in every stack.
ALLOWED_ERROR = 1 - np.linspace(0.5, 0.95, 10)

_UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(f"{_UNITS} eighteen nineteen".split())}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)} | {"hundred": 100, "thousand": 1000}
_DIGITS = re.compile(r"-?\d+(?:\.\d+)?")
_REASONING = re.compile(r"<(think|analysis)>.*?</\1>", re.DOTALL)


def score(
    predictions: Mapping[Any, str | None], annotations: Sequence[Mapping[str, Any]], protocol: str = "official"
) -> dict[str, Any]:
    """Score answers to VSI-Bench questions.

    Args:
        predictions: question id -> raw generated text.
        annotations: the benchmark's records (id, question_type, ground_truth; scene_name is passed on).
        protocol: "official" and "vega3d" read the first space-separated token; "lmms_eval" (0.7.3) reads the first number
            or English number word anywhere and ignores <think> and <analysis> blocks.

    Returns:
        metrics: percent. `overall` is the macro mean over the tasks present; the three direction levels are first averaged
            with equal weight to `object_rel_direction`.
        per_item: id -> {"score": 0..1, "type", "scene", "prediction", "parsed"}.
        notes: n, hashes, warnings, and counts of unparsable answers, answers that are NaN or infinite (worth 0) and ground
            truths that are 0, no number or negative (where the reference gives 1 to any answer that is too large). Where the
            reference code raises (zero ground truth, None, an absent direction level) the item counts as 0, or the mean is
            taken over the levels present, and a warning says so.

    Raises:
        UserError: unknown protocol or question type, missing or duplicate ids.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("VSI-Bench protocol", protocol, PROTOCOLS)
    items, notes = join(predictions, annotations, "id", "vsibench", protocol)
    rows = {item.key: _score_item(item, protocol, notes["warnings"]) for item in items}
    notes["unparsable"] = sum(row["parsed"] is None for row in rows.values())
    _count_oddities(items, rows, notes)
    return {"metrics": _aggregate(rows.values(), protocol, notes["warnings"]), "per_item": rows, "notes": notes}


def relative_accuracy(predicted: float, truth: float) -> float:
    """Mean relative accuracy: the share of the ten allowed errors 50 %, 45 %, .. 5 % of `truth` that `predicted` meets.

    The truth keeps its sign in the denominator, as in all stacks.

    Raises:
        ZeroDivisionError: `truth` is 0.
    """
    return float(np.mean(abs(predicted - truth) / truth <= ALLOWED_ERROR))


def first_token(text: str) -> str:
    """The text before the first ASCII space without trailing full stops and, after that, without outer white space."""
    return text.split(" ")[0].rstrip(".").strip()


def first_number(text: str) -> float | None:
    """The first number in a sentence, in digits or in English words ("three hundred and twenty-one"), as lmms-eval 0.7.3."""
    text = text.lower()
    digits = _DIGITS.search(text)
    words = list(re.finditer(r"[a-z]+", text))
    start = next((index for index, match in enumerate(words) if match.group() in NUMBER_WORDS), None)
    if digits and (start is None or digits.start() < words[start].start()):
        return float(digits.group())
    if start is None:
        return None
    total = current = 0
    for match in words[start:]:
        if match.group() == "and":
            continue
        if match.group() not in NUMBER_WORDS:
            break
        value = NUMBER_WORDS[match.group()]
        if value == 1000:
            total, current = total + max(current, 1) * 1000, 0
        else:
            current = max(current, 1) * 100 if value == 100 else current + value
    return float(total + current)


def _to_float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _score_item(item: Item, protocol: str, warnings: list[str]) -> dict[str, Any]:
    kind, truth = field(item, "question_type", "vsibench"), field(item, "ground_truth", "vsibench")
    text = item.text
    if protocol == "lmms_eval" and _REASONING.search(text):
        text = _REASONING.sub("", text).strip()
    row = {"score": 0.0, "type": kind, "scene": item.record.get("scene_name"), "prediction": item.text, "parsed": None}
    if kind in CHOICE_TYPES:
        row["parsed"] = first_token(text) or None
        row["score"] = float(first_token(text).lower() == str(truth).lower())
    elif kind in NUMERIC_TYPES:
        row["parsed"] = first_number(text) if protocol == "lmms_eval" else _to_float(first_token(text))
        row["score"] = _numeric_score(row["parsed"], _to_float(truth), item, warnings)
    else:
        raise unknown_name("VSI-Bench question type", str(kind), (*CHOICE_TYPES, *NUMERIC_TYPES))
    return row


def _count_oddities(items: Sequence[Item], rows: Mapping[Hashable, dict[str, Any]], notes: dict[str, Any]) -> None:
    """Under notes["counts"] what the scores do not show; NaN and infinite answers become None, which JSON can hold."""
    if notes["unparsable"]:
        notes["counts"]["unparsable"] = notes["unparsable"]
    infinite = [row for row in rows.values() if isinstance(row["parsed"], float) and not math.isfinite(row["parsed"])]
    for row in infinite:
        row["parsed"] = None
    count(notes, "not_finite", len(infinite), "answers are NaN or infinite and count as 0")
    truths = [_to_float(item.record["ground_truth"]) for item in items if rows[item.key]["type"] in NUMERIC_TYPES]
    for name, number in (
        ("truth_zero", sum(truth == 0 for truth in truths)),
        ("truth_no_number", sum(truth is None or math.isnan(truth) for truth in truths)),
    ):
        if number:  # each already has its own warning
            notes["counts"][name] = number
    negative = sum(truth is not None and truth < 0 for truth in truths)
    count(
        notes, "truth_negative", negative, "ground truths are negative, where the reference gives full marks to larger answers"
    )


def _numeric_score(predicted: float | None, truth: float | None, item: Item, warnings: list[str]) -> float:
    if truth is None or truth == 0 or math.isnan(truth):
        fault = "is 0 (the reference code divides by it)" if truth == 0 else "is no number"
        warnings.append(f"question {item.key!r}: the ground truth {fault}; counted as 0")
        return 0.0
    return 0.0 if predicted is None else relative_accuracy(predicted, truth)


def _aggregate(rows: Iterable[Mapping[str, Any]], protocol: str, warnings: list[str]) -> dict[str, float]:
    by_type: dict[str, list[float]] = {}
    for row in rows:
        by_type.setdefault(row["type"], []).append(row["score"])
    means = {kind: 100 * float(np.mean(scores)) for kind, scores in by_type.items()}
    levels = [means[level] for level in DIRECTION_LEVELS if level in means]
    if levels:
        means[DIRECTION] = sum(levels) / len(levels)
    present = {kind: means[kind] for kind in TASK_TYPES if kind in means}
    tasks = list(present.values())
    if 0 < len(levels) < len(DIRECTION_LEVELS):
        absent = [level for level in DIRECTION_LEVELS if level not in means]
        if protocol == "official" and DIRECTION_LEVELS[0] in absent:
            tasks = [value for kind, value in present.items() if kind != DIRECTION] + levels
            fate = "overall counts the other levels as separate tasks, as the reference does"
        else:
            fate = f"{DIRECTION} is the mean of the levels present, where the reference raises KeyError"
        warnings.append(f"no question of {', '.join(absent)}: {fate}")
    if len(present) < len(TASK_TYPES):
        warnings.append(f"overall is the mean of {len(tasks)} tasks; the full benchmark has {len(TASK_TYPES)}")
    return {"overall": sum(tasks) / len(tasks), **present}
