"""The word-level tokenizer of the embedded text models, built from the training questions.

Digits are tokens of their own, and the fixed sentences of the benchmarks' prompts are single tokens: the prompts stay letter
for letter what ScanQA and VSI-Bench ask, yet cost a small reader little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FIXED_SENTENCES = (
    "These are frames of a video.",
    "Please answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "Answer the question simply.",
    "Measuring from the closest point of each object,",
    "What is the length of the longest dimension (length, width, or height) of the",
    "measured in centimeters?",
    "If multiple rooms are shown, estimate the size of the combined space.",
    "If there are multiple instances of an object category, measure to the closest.",
    "An object is to my back if I would have to turn at least 135 degrees in order to face it.",
    "The directions refer to the quadrants of a Cartesian plane "
    "(if I am standing at the origin and facing along the positive y-axis).",
    "You will perform the following actions (Note: for each [please fill in], "
    "choose either 'turn back,' 'turn left,' or 'turn right.'):",
    "You have reached the final destination.",
    "What will be the first-time appearance order of the following categories in the video:",
    "[please fill in]",
)


def build_tokenizer(texts: Iterable[str], minimum: int = 2) -> PreTrainedTokenizerFast:
    """Lower-casing word-level tokenizer over `texts`; words seen less than `minimum` times become <unk>."""
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[0-9]|[^\sA-Za-z0-9]"), "isolated")]
    )
    normalizer = normalizers.Lowercase()
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    counts: Counter[str] = Counter()
    for text in texts:
        for sentence in FIXED_SENTENCES:
            text = text.replace(sentence, " ")
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    words = sorted(word for word, count in counts.items() if count >= minimum)
    words += [mark for mark in "0123456789." if mark not in words]
    tokenizer = Tokenizer(models.WordLevel(special | {w: i for i, w in enumerate(words, len(special))}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_tokens([AddedToken(sentence, normalized=False) for sentence in FIXED_SENTENCES])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
