"""What an answer is worth beside its references: F1 (SQuAD, QuAC, DROP), ROUGE-L, BLEU.  Pure
functions of texts.

Written from the definitions in the papers that are named below, and compared to 1e-6 with
independent libraries in tests/parity/test_metrics_of_text.py.  F1 and ROUGE-L are fractions of
1, BLEU is in points of 100. Dimensions: N the longest n-gram (4), C = 2 + 2 N columns of BLEU.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

N = 4
CANNOT = "CANNOTANSWER"  # QuAC's mark of a question without an answer
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WRITTEN = (
  ("<skipped>", ""),
  ("-\n", ""),
  ("\n", " "),
  ("&quot;", '"'),
  ("&amp;", "&"),
  ("&lt;", "<"),
  ("&gt;", ">"),
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
  """Lower case, without punctuation and articles, single spaces (Rajpurkar et al. 2016)."""
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(prediction: str, references: Sequence[str]) -> float:
  """1 where the answer is one of the references once both are normalised, else 0."""
  return float(normalised(prediction) in {normalised(one) for one in references})


def f1(prediction: str, references: Sequence[str]) -> float:
  """The highest F1 of normalised words over the references (SQuAD).  Where one side has no words,
  both must have none.
  """
  return best(_word_f1, prediction, references)


def best(metric: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
  """The highest metric(prediction, reference)."""
  return max(metric(prediction, one) for one in references)


def _word_f1(prediction: str, reference: str) -> float:
  ours, theirs = normalised(prediction).split(), normalised(reference).split()
  if not ours or not theirs:
    return float(ours == theirs)
  return _f(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _f(common: int, ours: int, theirs: int) -> float:
  """The harmonic mean of common/ours and common/theirs."""
  return 2 * common / (ours + theirs) if common else 0.0


# --- QuAC ---


def quac_references(answers: Sequence[str]) -> tuple[str, ...]:
  """The answers that count (Choi et al. 2018): where at least half of the people found none, only
  that; else the others.
  """
  none = sum(one == CANNOT for one in answers)
  return (CANNOT,) if 2 * none >= len(answers) else tuple(one for one in answers if one != CANNOT)


def quac_f1(prediction: str, references: Sequence[str]) -> float:
  """F1 as people's own is measured: the mean, over the references, of the best F1 beside all
  others.
  """
  if len(references) == 1:
    return f1(prediction, references)
  without = [[*references[:at], *references[at + 1 :]] for at in range(len(references))]
  return sum(f1(prediction, others) for others in without) / len(without)


# --- DROP ---


def drop_f1(prediction: str, references: Sequence[Sequence[str]]) -> float:
  """The highest F1 of bags of words (Dua et al. 2019) over references of one or several spans each.

  Spans of both sides are paired so that the sum of their F1 is highest, and it is divided by the
  longer side's number of spans. A prediction is one span here, so that is its best pair over the
  number of the reference's.  A pair whose reference holds numbers counts only if a number is
  common.  The official program rounds to .01.
  """
  ours = set(_drop_text(prediction).split())
  return max(
    max(_bag_f1(ours, set(_drop_text(one).split())) for one in spans) / len(spans)
    for spans in references
  )


def drop_exact(prediction: str, references: Sequence[Sequence[str]]) -> float:
  """1 where a reference has one span and the answer is that, once both are normalised, else 0."""
  return float(
    any(len(spans) == 1 and _drop_text(spans[0]) == _drop_text(prediction) for spans in references)
  )


def _bag_f1(ours: set[str], theirs: set[str]) -> float:
  numbers = {word for word in theirs if _is_number(word)}
  if numbers and not numbers & ours:
    return 0.0
  if not ours or not theirs:
    return float(ours == theirs)
  return _f(len(ours & theirs), len(ours), len(theirs))


def _drop_text(text: str) -> str:
  """As `normalised`, but split at hyphens too, and numbers keep their points and become equal where
  their values are.
  """
  words = []
  for word in re.split("[ -]", text.lower()):
    plain = word if _is_number(word) else word.translate(_PUNCTUATION)
    plain = str(float(plain)) if _is_number(plain) else plain
    words += _ARTICLES.sub(" ", plain).split()
  return " ".join(words)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


# --- ROUGE-L ---


def rouge_l(prediction: str, reference: str) -> float:
  """F1 of the longest common subsequence of words (Lin 2004); words are runs of a-z and 0-9 in
  lower case, not stemmed.
  """
  ours, theirs = (re.findall("[a-z0-9]+", text.lower()) for text in (prediction, reference))
  return _f(_common(ours, theirs), len(ours), len(theirs))


def _common(a: Sequence[str], b: Sequence[str]) -> int:
  """The length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for one in a:
    before = 0
    for at, other in enumerate(b, 1):
      before, row[at] = row[at], before + 1 if one == other else max(row[at], row[at - 1])
  return row[-1]


# --- BLEU ---


def words_13a(text: str) -> list[str]:
  """The tokens of NIST's mteval-v13a: punctuation stands alone, but . and , within numbers, and -
  not after a digit.
  """
  for written, meant in _WRITTEN:
    text = text.replace(written, meant)
  text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", f" {text} ")
  text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
  text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
  return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def bleu_counts(prediction: str, reference: str) -> list[float]:
  """The C numbers of one item whose sums make corpus BLEU: both lengths, common n-grams and n-grams
  of the prediction.
  """
  ours, theirs = words_13a(prediction), words_13a(reference)
  grams = lambda words, n: Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
  common = [sum((grams(ours, n) & grams(theirs, n)).values()) for n in range(1, N + 1)]
  return [
    float(x) for x in (len(ours), len(theirs), *common, *(max(len(ours) - n, 0) for n in range(N)))
  ]


def bleu(sums: Float[np.ndarray, "*S C"]) -> Float[np.ndarray, "*S"]:
  """BLEU of summed counts (Papineni et al. 2002), from 0 to 100.

  An order without a common n-gram counts as half an n-gram, the next one as a quarter and so on;
  a corpus without any common word, or without any 4-gram, is worth 0.
  """
  sums = np.asarray(sums, np.float64)
  ours, theirs, common, count = sums[..., 0], sums[..., 1], sums[..., 2 : 2 + N], sums[..., 2 + N :]
  none = (common == 0) & (count > 0)
  found = np.where(none, 0.5 ** np.cumsum(none, axis=-1), common) / np.maximum(count, 1)
  with np.errstate(divide="ignore"):
    geometric = np.exp(np.log(found).mean(axis=-1))
  brevity = np.exp(np.minimum(1 - theirs / np.maximum(ours, 1), 0))
  return np.where(common.any(axis=-1), 100 * brevity * geometric, 0.0)


def sentence_bleu(prediction: str, reference: str) -> float:
  """BLEU of one pair, with as many orders as the prediction has words: for texts of a few words."""
  counts = bleu_counts(prediction, reference)
  orders = min(N, int(counts[0]))
  if not counts[2]:
    return 0.0
  logs, halves = 0.0, 1.0
  for common, count in zip(counts[2 : 2 + orders], counts[2 + N :], strict=False):
    halves *= 1 if common else 2
    logs += math.log(common / count if common else 1 / (halves * count))
  return 100 * math.exp(min(1 - counts[1] / counts[0], 0) + logs / orders)
