"""Scores of texts equal those of sacrebleu, rouge-score, transformers and lm-evaluation-harness."""

import random

import numpy as np
import pytest

from instructjax.evals import porter
from instructjax.evals import text_metrics as metrics

pytestmark = pytest.mark.oracle
sacrebleu = pytest.importorskip("sacrebleu")
rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
squad = pytest.importorskip("transformers.data.metrics.squad_metrics")

TEXT = (
  'The cat\'s sat, on a 3.5 mat - well-known (U.S.) $3,000 1990-1995 e.g. "quoted" &amp; <b> 50% '
  "it's the an A x_y z/w a.b 5, "
  "7-year twenty-one yards Ann Bob's 12-yard 3.0 3 naïve —dash 中文。 nan"
)
WORDS = TEXT.split()


def texts(count, least=0, most=20, seed=0):
  rng = random.Random(seed)
  return [" ".join(rng.choices(WORDS, k=rng.randint(least, most))) for _ in range(count)]


def test_bleu():
  for seed in range(60):
    ours, theirs = texts(4, seed=seed), texts(4, least=1, seed=seed + 1000)
    mixed = [
      f"{a} {b}" if at % 2 else b for at, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    for answers in (ours, mixed):
      sums = np.sum(
        [metrics.bleu_counts(a, b) for a, b in zip(answers, theirs, strict=True)], axis=0
      )
      assert metrics.bleu(sums) == pytest.approx(
        sacrebleu.corpus_bleu(answers, [theirs]).score, abs=1e-6
      )


def test_sentence_bleu():
  for a, b in zip(texts(300), texts(300, least=1, most=6, seed=1), strict=True):
    assert metrics.sentence_bleu(a, b) == pytest.approx(
      sacrebleu.sentence_bleu(a, [b]).score, abs=1e-6
    )


def test_rouge_l():
  scorer = rouge_scorer.RougeScorer(["rougeL"])
  for a, b in zip(texts(300), texts(300, seed=1), strict=True):
    assert metrics.rouge_l(a, b) == pytest.approx(scorer.score(b, a)["rougeL"].fmeasure, abs=1e-6)


def test_stemmed_rouge_l():
  scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
  rng = random.Random(2)
  endings = [*porter.FOURTH, *(ending for ending, _ in porter.SECOND + porter.THIRD)]
  endings += ["", "s", "ies", "ed", "ied", "ing", "eed", "y", "e", "ll", "logi"]

  def word():
    return "".join(rng.choices("aeioulsty", k=rng.randint(1, 5))) + rng.choice(endings)

  for _ in range(2000):
    both = [word(), word()]
    a, b = [f"{word()} {both[0]} {both[1]}", f"{both[0]}s {both[1]}"]
    assert metrics.rouge_l(a, b, stemmed=True) == pytest.approx(
      scorer.score(b, a)["rougeL"].fmeasure, abs=1e-6
    )


def test_squad():
  for a, b in zip(texts(500, most=8), texts(500, most=8, seed=1), strict=True):
    assert metrics.f1(a, [b]) == pytest.approx(squad.compute_f1(b, a), abs=1e-6)
    assert metrics.exact(a, [b]) == squad.compute_exact(b, a)


def test_drop():
  """The official score is rounded to .01."""
  drop = pytest.importorskip("lm_eval.tasks.drop.utils")
  rng = random.Random(0)
  spans = texts(2000, least=1, most=5, seed=2)
  for answer in texts(1000, most=6):
    gold = rng.sample(spans, rng.randint(1, 3))
    exact, f1 = drop.get_metrics([answer], gold)
    assert abs(metrics.drop_f1(answer, [gold]) - f1) <= 0.005 + 1e-6
    assert metrics.drop_exact(answer, [gold]) == exact
