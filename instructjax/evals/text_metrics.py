"""What an answer is worth beside its references: F1 (SQuAD, QuAC, DROP), ROUGE-L, BLEU.

Pure functions of texts, written from the definitions in the papers that are named below, and
compared to 1e-6 with independent libraries in tests/parity/test_metrics_of_text.py. F1 and ROUGE-L
are fractions of 1, BLEU is in points of 100. Dimensions: N the longest n-gram (4), C = 2 + 2 N
columns of BLEU.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from instructjax.evals import porter

N = 4
CANNOT = "CANNOTANSWER"  # QuAC's mark of a question without an answer
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# What mteval-v13a replaces before it splits a text.
_ENTITIES = (
  ("<skipped>", ""),
  ("-\n", ""),
  ("\n", " "),
  ("&quot;", '"'),
  ("&amp;", "&"),
  ("&lt;", "<"),
  ("&gt;", ">"),
)


# --- SQuAD ---


def normalised(text: str) -> str:
  """Returns a text in lower case, without punctuation and articles, with single spaces.

  This is the normalisation of Rajpurkar et al. 2016.
  """
  plain = text.lower().translate(_PUNCTUATION)
  words = _ARTICLES.sub(" ", plain).split()
  return " ".join(words)


def exact(prediction: str, references: Sequence[str]) -> float:
  """Returns 1 if the answer is one of the references once both are normalised, else 0."""
  answer = normalised(prediction)
  return float(any(normalised(reference) == answer for reference in references))


def f1(prediction: str, references: Sequence[str]) -> float:
  """Returns the highest F1 of normalised words over the references (SQuAD).

  Where one side has no words, F1 is 1 if the other has none either, else 0.
  """
  return best(_word_f1, prediction, references)


def best(
  metric: Callable[[str, str], float],
  prediction: str,
  references: Sequence[str],
) -> float:
  """Returns the highest metric(prediction, reference)."""
  return max(metric(prediction, reference) for reference in references)


def _word_f1(prediction: str, reference: str) -> float:
  ours = normalised(prediction).split()
  theirs = normalised(reference).split()
  if not ours or not theirs:
    return float(ours == theirs)
  # A word counts as often as it occurs on both sides.
  common = Counter(ours) & Counter(theirs)
  return _f1_of_counts(common.total(), len(ours), len(theirs))


def _f1_of_counts(common: int, ours: int, theirs: int) -> float:
  """Returns the harmonic mean of common / ours and common / theirs."""
  if not common:
    return 0.0
  return 2 * common / (ours + theirs)


# --- QuAC ---


def quac_references(answers: Sequence[str]) -> tuple[str, ...]:
  """Returns the answers that count as references (Choi et al. 2018).

  Where at least half of the people saw no answer, that is the only reference; else the other
  answers are.
  """
  unanswered = sum(answer == CANNOT for answer in answers)
  if 2 * unanswered >= len(answers):
    return (CANNOT,)
  return tuple(answer for answer in answers if answer != CANNOT)


def quac_f1(prediction: str, references: Sequence[str]) -> float:
  """Returns F1 as the F1 of people is measured, who have one reference less than a model.

  It is the mean, over the references, of the best F1 beside all the others (Choi et al. 2018).
  """
  if len(references) == 1:
    return f1(prediction, references)
  scores = []
  for left_out in range(len(references)):
    before, after = references[:left_out], references[left_out + 1 :]
    score = f1(prediction, [*before, *after])
    scores.append(score)
  return sum(scores) / len(scores)


# --- DROP ---


def drop_f1(prediction: str, references: Sequence[Sequence[str]]) -> float:
  """Returns the highest F1 of bags of words over references of one or several spans each.

  In Dua et al. 2019 the spans of both sides are paired so that the sum of their F1 is highest, and
  this sum is divided by the larger number of spans. A prediction is one span here, so its best pair
  is divided by the number of the reference's spans. A pair whose reference holds numbers counts
  only if the sides have a number in common. The official program rounds to .01; this does not.
  """
  ours = set(_drop_text(prediction).split())
  scores = []
  for spans in references:
    bags = [set(_drop_text(span).split()) for span in spans]
    best_pair = max(_bag_f1(ours, bag) for bag in bags)
    scores.append(best_pair / len(spans))
  return max(scores)


def drop_exact(prediction: str, references: Sequence[Sequence[str]]) -> float:
  """Returns 1 if the answer is a reference of one span once both are normalised, else 0."""
  ours = _drop_text(prediction)
  single_spans = [spans[0] for spans in references if len(spans) == 1]
  return float(any(_drop_text(span) == ours for span in single_spans))


def _bag_f1(ours: set[str], theirs: set[str]) -> float:
  numbers = {word for word in theirs if _is_number(word)}
  if numbers and not numbers & ours:
    return 0.0
  if not ours or not theirs:
    return float(ours == theirs)
  common = ours & theirs
  return _f1_of_counts(len(common), len(ours), len(theirs))


def _drop_text(text: str) -> str:
  """Returns a text normalised as in SQuAD, but for hyphens and numbers.

  Words are split at hyphens too. Numbers keep their points, and those of one value become equal.
  """
  words = []
  for word in re.split("[ -]", text.lower()):
    if not _is_number(word):
      word = word.translate(_PUNCTUATION)
    if _is_number(word):  # it may have become one: $5 is 5
      word = str(float(word))
    words += _ARTICLES.sub(" ", word).split()
  return " ".join(words)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


# --- ROUGE-L ---


def rouge_l(prediction: str, reference: str, *, stemmed: bool = False) -> float:
  """Returns F1 of the longest common subsequence of words (Lin 2004).

  Words are runs of a-z and 0-9 in lower case. `stemmed` words of more than three letters are
  compared by Porter's stem, as many published numbers do.
  """
  ours = re.findall("[a-z0-9]+", prediction.lower())
  theirs = re.findall("[a-z0-9]+", reference.lower())
  if stemmed:
    ours = [_stem(word) for word in ours]
    theirs = [_stem(word) for word in theirs]
  common = _longest_common(ours, theirs)
  return _f1_of_counts(common, len(ours), len(theirs))


def _stem(word: str) -> str:
  return porter.stem(word) if len(word) > 3 else word


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
  """Returns the length of the longest common subsequence.

  `lengths[j]` is that of the words of a so far and the first j words of b.
  """
  lengths = [0] * (len(b) + 1)
  for word in a:
    diagonal = 0  # the length without this word and without the j-th word of b
    for j, word_of_b in enumerate(b, 1):
      above = lengths[j]
      if word == word_of_b:
        lengths[j] = diagonal + 1
      else:
        lengths[j] = max(above, lengths[j - 1])
      diagonal = above
  return lengths[-1]


# --- BLEU ---


def words_13a(text: str) -> list[str]:
  """Returns the tokens of NIST's mteval-v13a.

  Punctuation is a token of its own, except for points and commas within numbers and for a hyphen
  that follows no digit.
  """
  for entity, replacement in _ENTITIES:
    text = text.replace(entity, replacement)
  text = re.sub(r"([{-~\[-` -&(-+:-@/])", r" \1 ", f" {text} ")
  text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
  text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
  return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def bleu_counts(prediction: str, reference: str) -> list[float]:
  """Returns the C numbers of one item, whose sums over the items make the BLEU of a corpus.

  They are both lengths, the common n-grams for each n, and the n-grams of the prediction.
  """
  ours, theirs = words_13a(prediction), words_13a(reference)
  common_counts, own_counts = [], []
  for n in range(1, N + 1):
    own_grams = _grams(ours, n)
    # An n-gram counts as often as it occurs on both sides ("clipped" in the paper).
    common = own_grams & _grams(theirs, n)
    common_counts.append(common.total())
    own_counts.append(own_grams.total())
  counts = [len(ours), len(theirs), *common_counts, *own_counts]
  return [float(count) for count in counts]


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
  """Returns how often each n-gram occurs."""
  counts: Counter[tuple[str, ...]] = Counter()
  for start in range(len(words) - n + 1):
    gram = tuple(words[start : start + n])
    counts[gram] += 1
  return counts


def bleu(sums: Float[np.ndarray, "*S C"]) -> Float[np.ndarray, "*S"]:
  """Returns BLEU of summed counts (Papineni et al. 2002), from 0 to 100.

  BLEU = 100 exp(min(1 - r/c, 0)) (p_1 ... p_N)^(1/N), where c and r are the lengths of predictions
  and references, and p_n is the precision of n-grams. An order without a common n-gram counts as
  half an n-gram, the next such order as a quarter and so on. A corpus without any common word, or
  without any 4-gram, has 0.
  """
  sums = np.asarray(sums, np.float64)
  ours = sums[..., 0]
  theirs = sums[..., 1]
  common = sums[..., 2 : 2 + N]
  count = sums[..., 2 + N :]

  is_zero = (common == 0) & (count > 0)
  halves = 0.5 ** np.cumsum(is_zero, axis=-1)
  smoothed = np.where(is_zero, halves, common)
  precision = smoothed / np.maximum(count, 1)
  with np.errstate(divide="ignore"):  # the log of a precision of 0 is -inf, whose exp is 0
    mean_log = np.log(precision).mean(axis=-1)
  geometric_mean = np.exp(mean_log)

  ratio = theirs / np.maximum(ours, 1)
  brevity = np.exp(np.minimum(1 - ratio, 0))
  value = 100 * brevity * geometric_mean
  return np.where(common.any(axis=-1), value, 0.0)


def sentence_bleu(prediction: str, reference: str) -> float:
  """Returns BLEU of one pair, with as many orders as the prediction has words.

  It is for texts of a few words, and smoothed as `bleu` is.
  """
  counts = bleu_counts(prediction, reference)
  ours, theirs = counts[0], counts[1]
  if not counts[2]:  # no common word
    return 0.0
  orders = min(N, int(ours))
  log_sum = 0.0
  divisor = 1.0
  for order in range(orders):
    common, count = counts[2 + order], counts[2 + N + order]
    if common:
      log_sum += math.log(common / count)
    else:
      divisor *= 2  # a half n-gram, then a quarter ...
      log_sum += math.log(1 / (divisor * count))
  log_brevity = min(1 - theirs / ours, 0)
  return 100 * math.exp(log_brevity + log_sum / orders)
