"""Scores of texts have the values that were worked by hand from the definitions."""

import math

import numpy as np
import pytest

from instructjax.evals import porter
from instructjax.evals import text_metrics as metrics


@pytest.mark.parametrize(
  ("prediction", "references", "f1", "exact"),
  [
    (
      "The Normans!",
      ["normans", "the people"],
      1,
      1,
    ),  # articles, case and punctuation do not count
    (
      "in the north of France",
      ["France", "northern France"],
      2 / (4 + 1),
      0,
    ),  # the other gives 2 / (4 + 2)
    ("red red", ["red"], 2 / 3, 0),  # a word counts as often as it stands there: 1 of 2, 1 of 1
    ("", ["Not in background."], 0, 0),
    ("a", ["the"], 1, 1),  # nothing is left of either
    ("Not in background.", ["Not in background."], 1, 1),
  ],
)
def test_squad(prediction, references, f1, exact):
  assert metrics.f1(prediction, references) == pytest.approx(f1)
  assert metrics.exact(prediction, references) == exact


def test_quac_leaves_one_reference_out_each_time():
  """F1 beside "x y", "y" and "z" is 1, 2/3 and 0; the best without each is 2/3, 1 and 1."""
  assert metrics.quac_f1("x y", ("x y", "y", "z")) == pytest.approx((2 / 3 + 1 + 1) / 3)
  assert metrics.quac_f1("x y", ("y",)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
  ("answers", "counted"),
  [
    (["a", "CANNOTANSWER"], ("CANNOTANSWER",)),  # half of them is enough
    (["a", "b", "CANNOTANSWER"], ("a", "b")),
    (["a"], ("a",)),
  ],
)
def test_quac_counts_the_majority(answers, counted):
  assert metrics.quac_references(answers) == counted


@pytest.mark.parametrize(
  ("prediction", "references", "f1", "exact"),
  [
    ("12 yards", [["12"]], 2 / 3, 0),
    ("13 yards", [["12 yards"]], 0, 0),  # the number is another one
    ("yards", [["12 yards"]], 0, 0),
    ("3", [["3.0"]], 1, 1),
    ("1,000", [["1000"]], 1, 1),
    ("$5", [["5"]], 1, 1),
    ("Ann Lee", [["Ann Lee", "Bob"]], 1 / 2, 0),  # one span of two was found
    ("Ann Lee, Bob", [["Ann Lee", "Bob"]], 2 * 2 / (3 + 2) / 2, 0),  # the pair that fits best
    ("touch touch down", [["touch-down"]], 1, 0),  # a bag holds a word once; hyphens split
    ("nothing", [["4"], ["nothing much"]], 2 / 3, 0),  # the best reference
  ],
)
def test_drop(prediction, references, f1, exact):
  assert metrics.drop_f1(prediction, references) == pytest.approx(f1)
  assert metrics.drop_exact(prediction, references) == exact


@pytest.mark.parametrize(
  ("prediction", "reference", "value"),
  [
    ("the cat sat", "The cat, on the mat, sat.", 2 * 3 / (3 + 6)),
    ("sat cat the", "the cat sat", 2 * 1 / 6),
    ("", "word", 0),
    ("don't", "don t", 1),
  ],
)
def test_rouge_l(prediction, reference, value):
  assert metrics.rouge_l(prediction, reference) == pytest.approx(value)


def test_13a_splits_as_nist_does():
  text = 'The U.S. paid $3,000.50, "twice" &amp; 7-fold - well-known.'
  assert metrics.words_13a(text) == [
    "The",
    "U",
    ".",
    "S",
    ".",
    "paid",
    "$",
    "3,000.50",
    ",",
    '"',
    "twice",
    '"',
    "&",
    "7",
    "-",
    "fold",
    "-",
    "well-known",
    ".",
  ]


def test_bleu_is_of_sums():
  """The sums are those of two pairs: precisions of 8/10, 5/8, 2/6 and 1/4, 10 words beside 11."""
  pairs = [("a b c d e", "a b c d x"), ("a b x d e", "a b c d e f")]
  counts = np.array([metrics.bleu_counts(*pair) for pair in pairs])
  assert counts.tolist() == [[5, 5, 4, 3, 2, 1, 5, 4, 3, 2], [5, 6, 4, 2, 0, 0, 5, 4, 3, 2]]
  precisions = [8 / 10, 5 / 8, 2 / 6, 1 / 4]
  value = 100 * math.exp(1 - 11 / 10) * math.prod(precisions) ** 0.25
  assert metrics.bleu(counts.sum(axis=0)) == pytest.approx(value)
  assert metrics.bleu(np.stack([counts.sum(axis=0), counts[0]])).shape == (2,)


def test_bleu_of_little():
  zero = np.array(metrics.bleu_counts("p q r s t", "a b c d e"))
  assert metrics.bleu(zero) == 0
  assert metrics.bleu(np.array(metrics.bleu_counts("", "a"))) == 0
  smooth = np.array(
    metrics.bleu_counts("a b x d", "a b c d")
  )  # 3/4, 1/3, then 1/2 of 2 and 1/4 of 1
  assert metrics.bleu(smooth) == pytest.approx(100 * (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25)
  assert metrics.sentence_bleu("yes", "yes") == pytest.approx(100)
  assert metrics.sentence_bleu("a c", "a b") == pytest.approx(100 * (1 / 2 * 1 / 2) ** 0.5)
  assert metrics.sentence_bleu("", "a") == 0


@pytest.mark.parametrize(
  ("word", "stem"),
  [
    # The examples of Porter 1980, a step each.
    ("caresses", "caress"),
    ("ponies", "poni"),
    ("cats", "cat"),
    ("agreed", "agre"),
    ("feed", "feed"),
    ("plastered", "plaster"),
    ("motoring", "motor"),
    ("sing", "sing"),
    ("conflated", "conflat"),
    ("hopping", "hop"),
    ("falling", "fall"),
    ("filing", "file"),
    ("happy", "happi"),
    ("relational", "relat"),
    ("conformably", "conform"),
    ("electricity", "electr"),
    ("adoption", "adopt"),
    ("rate", "rate"),
    ("controll", "control"),
    # What NLTK changed.
    ("dies", "die"),
    ("died", "die"),
    ("enjoy", "enjoy"),
    ("skies", "sky"),
    ("theologi", "theolog"),
  ],
)
def test_porters_stems(word, stem):
  assert porter.stem(word) == stem


def test_rouge_of_stemmed_words():
  """ "cats" and "cat" agree once they are stemmed; words of three letters stay as they are."""
  assert metrics.rouge_l("the cats", "the cat") == 0.5
  assert metrics.rouge_l("the cats", "the cat", stemmed=True) == 1
  assert metrics.rouge_l("gas", "ga", stemmed=True) == 0
