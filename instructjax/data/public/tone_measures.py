"""Measures of tone: pairs of texts, the agreement of raters, and the VADER lexicon.

They are for the evaluation of the quickstart, and never for its training.

Dimensions: A raters of one text, C raters of another, K texts of a comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from instructjax.data.public import tone
from instructjax.data.records.records import Comparison, Demonstration, Prompt
from instructjax.intervals import Estimate, share

# The authors of VADER call a text positive from this compound score on (Hutto and Gilbert 2014).
POSITIVE = 0.05


def pair_accuracy(scores: Sequence[Sequence[float]], comparisons: Sequence[Comparison]) -> Estimate:
  """Returns the share of the pairs of texts that the scores order as the ranks do.

  Pairs whose ranks tie are left out. Equal scores count half. `scores` has a score for each
  completion of each comparison, and may have padding after them.
  """
  counts = []
  for padded_scores, comparison in zip(scores, comparisons, strict=True):
    rank = np.asarray(comparison.ranks)
    score = np.asarray(padded_scores, np.float64)[: len(rank)]
    # Both are [K, K]: whether the first text of a pair has the better rank, and whether it has the
    # higher score, as 1, 0, or a half where the scores are equal.
    better = rank[:, None] < rank[None, :]
    higher = (np.sign(score[:, None] - score[None, :]) + 1) / 2
    right = float((higher * better).sum())
    counts.append((right, float(better.sum())))
  return share(np.asarray(counts))


# --- people ---


@functools.cache
def _rows_by_text() -> dict[tuple[str, str], tone.Rated]:
  return {(row.domain, row.text): row for row in tone.load()}


def rated(comparison: Comparison) -> list[tone.Rated]:
  """Returns the rated texts that a comparison of `tone.tasks` is made of."""
  rows = _rows_by_text()
  domain = str(comparison.source)
  return [rows[domain, text] for text in comparison.completions]


def rater_agreement(comparisons: Sequence[Comparison]) -> Estimate:
  """Returns how often two raters agree which of two texts is better.

  Each rater compares the texts by the two ratings that they gave. The mean is over the pairs of
  texts of a comparison and over all pairs of different raters who both see a difference. With the
  sign s_ac of (rating a of one text - rating c of the other) it is

    (1 + sum s_ac s_bd / sum |s_ac s_bd|) / 2    over a != b and c != d.
  """
  counts = []
  for comparison in comparisons:
    ratings = [np.asarray(row.ratings) for row in rated(comparison)]
    agree = seen = 0.0
    for i in range(len(ratings)):
      for j in range(i):
        pair_agree, pair_seen = _pair_agreement(ratings[i], ratings[j])
        agree += pair_agree
        seen += pair_seen
    counts.append((agree, seen))
  return share(np.asarray(counts))


def _pair_agreement(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
  """Returns two shares of the pairs of raters of two texts: who agree, and who see a difference."""
  sign = np.sign(first[:, None] - second[None, :]).astype(float)
  signed = _distinct_sum(sign)
  untied = _distinct_sum(abs(sign))
  # The ordered pairs of different raters. As shares, texts with many raters weigh no more.
  pairs = len(first) * (len(first) - 1) * len(second) * (len(second) - 1)
  return (signed + untied) / 2 / pairs, untied / pairs


def _distinct_sum(s: Float[np.ndarray, "A C"]) -> float:
  """Returns the sum of s[a, c] s[b, d] over a != b and c != d.

  It is the sum over everything without a = b and without c = d. Where both hold, the term has been
  taken away twice, so it is added again.
  """
  everything = s.sum() ** 2
  same_row = (s.sum(1) ** 2).sum()
  same_column = (s.sum(0) ** 2).sum()
  same_entry = (s**2).sum()
  return float(everything - same_row - same_column + same_entry)


def half_agreement(comparisons: Sequence[Comparison]) -> Estimate:
  """Returns how often half "b" of the raters orders two texts as half "a" does, by their means.

  This is a ceiling for a model that learns from half "a", because of the noise of the ratings.
  """
  scores, ranked = [], []
  for comparison in comparisons:
    rows = rated(comparison)
    ranks = tone.ranks([tone.mean(row, "a") for row in rows])
    ranked.append(Comparison(comparison.prompt, comparison.completions, ranks))
    scores.append([tone.mean(row, "b") for row in rows])
  return pair_accuracy(scores, ranked)


# --- the lexicon ---


@functools.cache
def _analyzer():
  # The import reads the lexicon, so it waits until somebody asks for a score.
  from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

  return SentimentIntensityAnalyzer()


def vader(text: str) -> float:
  """Returns the compound score of the VADER lexicon, from -1 to 1."""
  scores = _analyzer().polarity_scores(text)
  return float(scores["compound"])


def vader_score(record: Prompt | Demonstration | Comparison, completion: str) -> float:
  """Returns VADER's score of the whole sentence, negated where the prompt asks for criticism."""
  compound = vader(completion)
  return compound if record.use_case == "praise" else -compound


def vader_accuracy(comparisons: Sequence[Comparison]) -> Estimate:
  """Returns the pair accuracy of the lexicon."""
  return pair_accuracy([_vader_scores(comparison) for comparison in comparisons], comparisons)


def _vader_scores(comparison: Comparison) -> list[float]:
  return [vader_score(comparison, completion) for completion in comparison.completions]


def follows(record: Prompt | Demonstration, completion: str) -> bool:
  """Returns whether VADER hears the tone that the prompt asks for."""
  return vader_score(record, completion) >= POSITIVE
