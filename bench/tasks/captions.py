"""Captions: BLEU, ROUGE-L, CIDEr, METEOR and the PTB tokenizer, all by pycocoevalcap 1.2 and the jars it carries.

Between cleaned texts and the numbers of bench/tasks/scanqa.py. METEOR and the tokenizer are Java programs; where there is no
`java` they are reported as missing, never imitated.

    python -c "from bench.tasks.captions import ngram_metrics; print(ngram_metrics(['a chair'], [['a chair']]))"
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vega_artifact import UserError

NO_JAVA = "no `java` on the path: METEOR and the PTB tokenizer are Java programs (install a JRE, for example openjdk-17-jre)"
# A comma locale breaks METEOR's number parsing (salaniz/pycocoevalcap#15).
_JAVA = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")

Scores = dict[str, tuple[float, list[float]]]  # metric -> (corpus value, value per item), as the libraries give them


def has_java() -> bool:
    return shutil.which("java") is not None


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


def meteor(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR 1.5, English, -norm: the jar's corpus value (not the mean of the items) and the value per item, 0..1.

    Texts must hold no line break: the jar reads one item per line.

    Raises:
        UserError: no Java, or the jar stopped.
    """
    folder = _folder("meteor")
    command = [*_JAVA, "-Xmx2G", "-jar", str(folder / "meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin and process.stdout
        to_java, from_java = process.stdin, process.stdout

        def ask(line: str) -> None:
            to_java.write(line + "\n")
            to_java.flush()

        def answer() -> str:
            if not (line := from_java.readline()):
                raise UserError("METEOR: the Java process stopped early; it needs 2 GB of memory, free some and run again")
            return line.strip()

        statistics = []
        for text, references in zip(predictions, answers):
            ask(" ||| ".join(("SCORE", *references, text.replace("|||", "").replace("  ", " "))))
            statistics.append(answer())
        ask(" ||| ".join(("EVAL", *statistics)))
        values = [float(answer()) for _ in statistics]
        return float(answer()), values


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """Stanford CoreNLP 3.4.1 tokens, lower case, without the punctuation pycocoevalcap lists; one text in, one text out.

    Raises:
        UserError: no Java, or the tokenizer failed.
    """
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    jar = _folder("tokenizer") / STANFORD_CORENLP_3_4_1_JAR
    command = [*_JAVA, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts"
        source.write_text("\n".join(one_line(text) for text in texts), encoding="utf-8")
        done = subprocess.run([*command, str(source)], capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.split("\n")
    if done.returncode or len(lines) < len(texts):
        raise UserError(f"PTB tokenizer: Java failed ({done.stderr.strip()[-200:] or 'no message'}); check `java -version`")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in lines[: len(texts)]]


def one_line(text: str) -> str:
    """The text with every line break as one space, since both Java programs read line by line."""
    return " ".join(text.splitlines()) if len(text.splitlines()) > 1 else text.rstrip("\r\n")


def _folder(part: str) -> Path:
    if not has_java():
        raise UserError(NO_JAVA)
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__))) / part  # a namespace package: it has no __file__
