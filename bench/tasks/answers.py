"""Answers: the normalisations ScanQA-style scorers apply to free text, and the two exact-match rules built on them.

Between generated text and the metrics of bench/tasks/scanqa.py, sqa3d.py and ladder.py. The rules restate the behaviour of
`clean_answer` and `answer_match` in LEO (embodied-generalist@567f2d8) and LLaVA-3D (ZCMax@91d979d), oddities included: it
deletes decimal points, makes "none" zero and knows the numbers 0-20 and 23 only.

    python -c "from bench.tasks.answers import clean_answer; print(clean_answer('The 2 chairs.'))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.tasks.records import count

_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_WORDS = {  # whole words, replaced in this order: misspellings of annotators, then digits
    "letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right",
    "behine": "behind", "tv": "TV", "chai": "chair", "wasing": "washing", "waslked": "walked", "oclock": "o'clock",
    r"o'[ ]+clock": "o'clock", "none": "zero", **{str(value): word for value, word in enumerate(_NUMBERS)},
    "23": "twenty-three",
}  # fmt: skip
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^ +| +$", ""),
        (r" {2,}", " "),
        (r"[^a-zA-Z0-9,'\s\-:]+", ""),
        *((rf"\b{word}\b", replacement) for word, replacement in _WORDS.items()),
        (r"\b([a-zA-Z]+)[0-9]\b", r"\1"),  # "mat2" names the second mat
        (r"\ba\b ([a-zA-Z]+)", r"\1"),
        (r"\ban\b ([a-zA-Z]+)", r"\1"),
        (r"\bthe\b ([a-zA-Z]+)", r"\1"),
        (r"\bbackwards\b", "backward"),
    )
]


def clean_answer(text: str) -> str:
    """Lower case, listed punctuation only, numbers as words, articles before a word dropped."""
    text = text.lower()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def contains_either_way(prediction: str, answer: str) -> bool:
    """Whether one is a substring of the other once white space is removed; an empty prediction is, as in the references."""
    prediction, answer = "".join(prediction.split()), "".join(answer.split())
    return prediction in answer or answer in prediction


def match_any(prediction: str, answers: Sequence[str]) -> tuple[int, int]:
    """LLaVA-3D's rule on cleaned texts: (exact match with any answer, containment with any answer)."""
    exact = prediction in answers
    return int(exact), int(exact or any(contains_either_way(prediction, answer) for answer in answers))


def match_first(prediction: str, answers: Sequence[str]) -> tuple[int, int]:
    """LEO's rule: the first answer that equals, contains or is contained decides, so a later exact match scores 0."""
    for answer in answers:
        if prediction == answer:
            return 1, 1
        if contains_either_way(prediction, answer):
            return 0, 1
    return 0, 0


def note_refined(notes: dict[str, Any], texts: Sequence[str], answers: Sequence[Sequence[str]], matches: np.ndarray) -> None:
    """Count where the references' matching rewards or punishes nonsense; notes["strict"]["em_refined"] does without (percent).

    Args:
        texts, answers: cleaned. matches: (N, 2) 0/1, exact and refined, as `match_any` or `match_first` gave them.
    """
    refined = matches[:, 1].astype(bool)
    empty = np.array([not text.strip() for text in texts]) & refined
    shared = np.array([_share_word(text, references) for text, references in zip(texts, answers)])
    late = sum(text in references for text, references in zip(texts, answers)) - int(matches[:, 0].sum())
    count(
        notes, "empty_rewarded", int(empty.sum()), "empty answers count as refined matches, since nothing is part of everything"
    )
    partial = int((refined & ~shared & ~empty).sum())
    count(notes, "partial_words_rewarded", partial, "refined matches share no whole word with any reference")
    count(
        notes, "late_exact_matches", late, "exact matches score 0, since an earlier reference contains the answer or is in it"
    )
    notes["strict"] = {"em_refined": 100 * float((refined & shared).mean())}


def _share_word(text: str, references: Sequence[str]) -> bool:
    words = set(text.split())
    return any(words & set(reference.split()) for reference in references)
