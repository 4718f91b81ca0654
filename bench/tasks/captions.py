"""Captions: BLEU, ROUGE-L, CIDEr, METEOR and the PTB tokenizer, all by pycocoevalcap 1.2 and the jars it carries.

Between cleaned texts and the numbers of bench/tasks/scanqa.py, sqa3d.py and scan2cap.py. What needs Java is reported as missing
where there is none, never imitated.

    python -c "from bench.tasks.captions import ngram_metrics; print(ngram_metrics(['a chair'], [['a chair']]))"
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.tasks.java import JAVA, NO_JAVA, has_java, jar_folder, one_line
from bench.tasks.meteor import meteor
from bench.tasks.records import count
from vega_artifact import UserError

NGRAM_METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")

Scores = dict[str, tuple[float, list[float]]]  # metric -> (corpus value, value per item), as the libraries give them


def caption_metrics(
    texts: Sequence[str], answers: Sequence[Sequence[str]], notes: dict[str, Any], ptb: bool, with_meteor: bool
) -> Scores:
    """The n-gram metrics and METEOR of a corpus.

    Args:
        texts: one prediction per item. answers: reference texts per item, at least one.
        notes: of the scorer; gets the reason for each missing metric in "missing", and the count of line breaks.
        ptb: compare PTB tokens joined by single spaces instead of the texts as they are.
    """
    java = has_java()
    if ptb and not java:
        notes["missing"] |= dict.fromkeys((*NGRAM_METRICS, "meteor"), NO_JAVA)
        return {}
    broken = sum(one_line(text) != text for text in texts)
    count(notes, "line_breaks", broken, "predictions hold line breaks; METEOR and the PTB tokenizer read them as spaces")
    if ptb:
        tokens = iter(ptb_tokenize([*texts, *(answer for references in answers for answer in references)]))
        texts, answers = [next(tokens) for _ in texts], [[next(tokens) for _ in references] for references in answers]
    scores = ngram_metrics(texts, answers)
    if java and with_meteor:
        scores["meteor"] = meteor(texts, answers)
    else:
        notes["missing"]["meteor"] = "left out on request" if java else NO_JAVA
    return scores


def ngram_metrics(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
    """bleu1..bleu4 (0..1), rouge_l (0..1), cider (0..10) on white-space tokens.

    Args:
        predictions: one text per item.
        answers: reference texts per item, at least one. CIDEr weighs n-grams by their frequency among the items given, so
            score a corpus as a whole.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {index: list(texts) for index, texts in enumerate(answers)}
    hypotheses = {index: [text] for index, text in enumerate(predictions)}
    bleu, bleu_items = Bleu(4).compute_score(references, hypotheses, verbose=0)
    scores: Scores = {f"bleu{n + 1}": (float(bleu[n]), [float(value) for value in bleu_items[n]]) for n in range(4)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider())):
        value, values = scorer.compute_score(references, hypotheses)
        scores[name] = float(value), [float(item) for item in values]
    return scores


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Stanford CoreNLP 3.4.1 tokens, lower case, without the punctuation pycocoevalcap lists; one text in, one text out.

    Raises:
        UserError: no Java, or the tokenizer failed.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    jar = jar_folder("tokenizer") / STANFORD_CORENLP_3_4_1_JAR
    command = [*JAVA, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts"
        source.write_text("\n".join(one_line(text) for text in texts), encoding="utf-8")
        done = subprocess.run([*command, str(source)], capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.split("\n")
    if done.returncode or len(lines) < len(texts):
        raise UserError(f"PTB tokenizer: Java failed ({done.stderr.strip()[-200:] or 'no message'}); check `java -version`")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in lines[: len(texts)]]
