"""Measures of tone for the evaluation of the quickstart, never for its training: pairs, raters,
VADER.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from instructjax.data.public import tone
from instructjax.data.records.records import Comparison, Prompt
from instructjax.intervals import Estimate, share


def pair_accuracy(scores: Sequence[Sequence[float]], comparisons: Sequence[Comparison]) -> Estimate:
  """The share of untied pairs that the scores order as the ranks do; equal scores count half."""
  parts = []
  for score, comparison in zip(scores, comparisons, strict=True):
    rank = np.asarray(comparison.ranks)
    value = np.asarray(score, np.float64)[: len(rank)]
    better = rank[:, None] < rank[None, :]
    right = (np.sign(value[:, None] - value[None, :]) + 1) / 2
    parts.append((float((right * better).sum()), float(better.sum())))
  return share(np.asarray(parts))


# --- people ---


@functools.cache
def _rows() -> dict[tuple[str, str], tone.Rated]:
  return {(row.domain, row.text): row for row in tone.load()}


def rated(comparison: Comparison) -> list[tone.Rated]:
  """The rated texts that a comparison of `tone.tasks` is made of."""
  return [
    _rows()[str(comparison.source), sentence(comparison.prompt, text)]
    for text in comparison.completions
  ]


def rater_agreement(comparisons: Sequence[Comparison]) -> Estimate:
  """How often two raters, each comparing two texts by the own ratings, agree on the better one.

  Over the pairs of texts of the comparisons and all pairs of different raters that see a
  difference: with the sign s_ac of (rating a of one text - rating c of the other) it is (1 + sum
  s_ac s_bd / sum |s_ac s_bd|) / 2 over a != b, c != d.
  """
  parts = []
  for comparison in comparisons:
    ratings = [np.asarray(row.ratings) for row in rated(comparison)]
    agree = seen = 0.0
    for i in range(len(ratings)):
      for j in range(i):
        sign = np.sign(ratings[i][:, None] - ratings[j][None, :]).astype(float)
        signed, untied = _distinct(sign), _distinct(abs(sign))
        total = len(ratings[i]) * (len(ratings[i]) - 1) * len(ratings[j]) * (len(ratings[j]) - 1)
        agree += (signed + untied) / 2 / total
        seen += untied / total
    parts.append((agree, seen))
  return share(np.asarray(parts))


def _distinct(s: Float[np.ndarray, "A C"]) -> float:
  """sum of s[a, c] s[b, d] over a != b and c != d."""
  return float(s.sum() ** 2 - (s.sum(1) ** 2).sum() - (s.sum(0) ** 2).sum() + (s**2).sum())


def half_agreement(comparisons: Sequence[Comparison]) -> Estimate:
  """How often the mean of half "b" orders two texts as the mean of half "a" does: a noise ceiling."""
  texts = [rated(c) for c in comparisons]
  by_a = [
    Comparison(c.prompt, c.completions, tone.ranks([tone.mean(row, "a") for row in group]))
    for c, group in zip(comparisons, texts, strict=True)
  ]
  return pair_accuracy([[tone.mean(row, "b") for row in group] for group in texts], by_a)


# --- the lexicon ---


@functools.cache
def _analyzer():
  from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

  return SentimentIntensityAnalyzer()


def vader(text: str) -> float:
  """The VADER lexicon's compound score, -1 to 1."""
  return float(_analyzer().polarity_scores(text)["compound"])


def sentence(prompt: str, completion: str) -> str:
  """The whole sentence: the first words that the prompt gave, and the completion."""
  given = prompt.rsplit("\n", 1)[-1].partition(":")[2]
  return " ".join(f"{given} {completion}".split())


def vader_score(record: Prompt | Comparison, completion: str) -> float:
  """VADER's score of the whole sentence in the direction that was asked for."""
  compound = vader(sentence(record.prompt, completion))
  return compound if record.use_case == "praise" else -compound


def vader_accuracy(comparisons: Sequence[Comparison]) -> Estimate:
  """The lexicon's pair accuracy."""
  return pair_accuracy(
    [[vader_score(c, text) for text in c.completions] for c in comparisons], comparisons
  )


def follows(record: Prompt, completion: str) -> bool:
  """Whether VADER finds the tone that was asked for (its authors' threshold, .05)."""
  return vader_score(record, completion) >= 0.05
