"""What all measures of a policy say together, in one sentence.

A win rate alone is easily believed too much: the judge errs, prompts are few, and a policy may win
although the score that it was trained on did not move. So the sentence is made of all measures, and
it says where they disagree and what is not known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from instructjax.intervals import Estimate, t_quantile
from instructjax.runs.report import page

# A judge that is right on fewer held-out pairs is weak. The paper's reward models reach .724 on
# their own labelers and .696 on others, and its labelers agree with each other on .73 to .77.
WEAK_JUDGE = 0.70
# A model that does as well as SFT has a half of the wins. Where the interval reaches further than
# this from its middle, even a win rate of .6 would have gone unseen.
WIDEST_HALF = 0.10
# At this KL (nats a response) no event is more than 22 points likelier than it was at the start, by
# Pinsker's inequality (√(KL/2)): the policy has hardly moved.
HARDLY_MOVED = 0.1
# Shares of answers (empty, or given to another prompt too) that may grow by so much unnoticed.
UNNOTICED_SHARE = 0.05
# Of the share of different word pairs, what may be lost unnoticed. Between the three seeds of the
# quickstart SFT's own share differs by a tenth.
UNNOTICED_LOSS = 0.20
# A noise between iterations is estimated from at least so many.
FEWEST_ITERATIONS = 8

Verdict = Literal["better", "worse", "undecided", "too few", "disagree", "unjudged"]


class Change(NamedTuple):
  """A measure of SFT or of the first iterations, and of the policy.

  `half` is half the width of the 95 % interval of the difference; NaN where it is not known.
  """

  before: float
  after: float
  half: float = math.nan


class Measures(NamedTuple):
  """All that a run has measured of a policy; None is what it has not.

  name       how the sentence calls it
  wins       the share of test prompts on which the judge prefers it to SFT
  judge      the judge's share of held-out pairs that it orders as people do
  gold       the judge's mean score over the iterations, where there are no wins
  reward     the mean score of the reward model that it was trained on
  kl         nats a response from its start
  lexicon    the share of answers in which the lexicon finds the tone that was asked for
  distinct   the share of different pairs of neighbouring words
  empty      the share of empty answers
  repeated   the share of answers that another prompt got too
  """

  name: str
  wins: Estimate | None = None
  judge: Estimate | None = None
  gold: Change | None = None
  reward: Change | None = None
  kl: Estimate | None = None
  lexicon: Change | None = None
  distinct: Change | None = None
  empty: Change | None = None
  repeated: Change | None = None


class Headline(NamedTuple):
  """The verdict, its sentence, what else is measured, and what is not known."""

  verdict: Verdict
  sentence: str
  findings: list[str]
  unknown: list[str]


# --- changes ---


def change_between(before: Estimate, after: Estimate) -> Change:
  """Returns the change from one mean to another.

  The interval takes both means as independent. They are of the same prompts, so the true interval
  is narrower: what this one calls a change is one.
  """
  half = math.hypot((before.high - before.low) / 2, (after.high - after.low) / 2)
  return Change(before.value, after.value, half)


def change_of_curve(values: Sequence[float]) -> Change | None:
  """Returns the change from the first to the last quarter of a curve; None where it is empty.

  The noise of a value is that between neighbours, √(Σ (v_i+1 - v_i)² / 2(n - 1)), which a trend
  hardly raises (von Neumann 1941). It is not known of fewer than `FEWEST_ITERATIONS`.
  """
  if not values:
    return None
  quarter = max(1, len(values) // 4)
  before = math.fsum(values[:quarter]) / quarter
  after = math.fsum(values[-quarter:]) / quarter
  if len(values) < FEWEST_ITERATIONS:
    return Change(before, after)
  steps = [(b - a) ** 2 for a, b in itertools.pairwise(values)]
  noise = math.sqrt(math.fsum(steps) / (2 * len(steps)))
  return Change(before, after, t_quantile(len(steps)) * noise * math.sqrt(2 / quarter))


def direction(change: Change | None) -> int | None:
  """Returns 1 for a rise beyond the noise, -1 for a fall, 0 for neither; None is not known."""
  if change is None or not math.isfinite(change.half):
    return None
  difference = change.after - change.before
  if abs(difference) <= change.half:
    return 0
  return 1 if difference > 0 else -1


def side(wins: Estimate | None) -> int | None:
  """Returns 1 where the whole interval lies above a half, -1 below it, 0 where it holds a half."""
  if wins is None or not math.isfinite(wins.low + wins.high):
    return None
  if wins.low > 0.5:
    return 1
  return -1 if wins.high < 0.5 else 0


# --- the sentence ---


def headline(measures: Measures) -> Headline:
  """Returns what the measures say together."""
  verdict, sentence = _verdict(measures)
  return Headline(verdict, sentence, findings(measures), unknown(measures))


def _verdict(measures: Measures) -> tuple[Verdict, str]:
  name = measures.name
  wins = measures.wins
  if wins is None:
    return _without_wins(measures)
  share = page.percent(wins.value)
  judged_side = side(wins)
  if judged_side is None:
    return "undecided", f"{name} wins {share} of test prompts against SFT (no interval is given)"
  ends = f"(95\u00a0% interval {page.interval(wins, share=True)}{page.n_after_comma(wins)})"
  rate = f"it wins {share} of test prompts {ends}"
  judge = measures.judge
  if judge is not None and judge.low <= 0.5:
    right = page.percent(judge.value)
    return (
      "undecided",
      f"Undecided whether {name} beats SFT: {rate}, by a judge that is right on {right} of "
      "held-out pairs, which may be chance",
    )
  if judged_side == 0:
    return _without_a_side(measures, rate)
  objections = _objections(measures, judged_side)
  if objections:
    return "disagree", f"The measures disagree on {name}: {rate}, but {_listed(objections)}"
  verdict: Verdict = "better" if judged_side == 1 else "worse"
  words = "beats SFT" if verdict == "better" else "is worse than SFT"
  by_judge = ""
  if judge is not None and judge.value < WEAK_JUDGE:
    by_judge = f" by a weak judge, right on {page.percent(judge.value)} of held-out pairs"
  faults = _faults(measures)
  but = f", but {_listed(faults)}" if faults and verdict == "better" else ""
  return verdict, f"{name} {words}{by_judge}: {rate}{but}"


def _without_a_side(measures: Measures, rate: str) -> tuple[Verdict, str]:
  """The sentence about an interval that holds a half."""
  wins = measures.wins
  assert wins is not None  # the caller has looked
  name = measures.name
  if (wins.high - wins.low) / 2 > WIDEST_HALF:
    return "too few", f"Too few prompts to tell whether {name} beats SFT: {rate}"
  while_reward = {
    1: ", while the score that it was trained on rose",
    -1: ", while the score that it was trained on fell",
    0: ", and the score that it was trained on did not move beyond its noise",
    None: "",
  }
  reward_words = while_reward[direction(measures.reward)]
  return "undecided", f"{name} does not differ clearly from SFT: {rate}{reward_words}"


def _without_wins(measures: Measures) -> tuple[Verdict, str]:
  """The sentence about a policy whose answers no judge has compared with SFT's."""
  name = measures.name
  reward = measures.reward
  if reward is None:
    return "unjudged", f"{name} has no score yet"
  ends = f"from {page.minus(reward.before)} to {page.minus(reward.after)}"
  reward_move = direction(reward)
  if reward_move is None:
    return "too few", f"Too few iterations to tell whether {name} learns: its score went {ends}"
  moves = {1: f"rose {ends}", -1: f"fell {ends}", 0: f"did not move beyond its noise ({ends})"}
  score = f"the score that {name} was trained on {moves[reward_move]}"
  gold_move = direction(measures.gold)
  if gold_move is None:
    return "unjudged", f"No judge has compared answers: {score}"
  gold = measures.gold
  assert gold is not None  # its direction is known
  gold_words = {1: "rose", -1: "fell", 0: "did not move beyond its noise"}
  judge = (
    f"that of its judge {gold_words[gold_move]} "
    f"(from {page.minus(gold.before)} to {page.minus(gold.after)})"
  )
  if gold_move * reward_move == -1:
    return "disagree", f"The measures disagree: {score}, but {judge}"
  if gold_move != reward_move or gold_move == 0:
    return "undecided", f"Undecided: {score}, and {judge}"
  verdict: Verdict = "better" if gold_move == 1 else "worse"
  return verdict, f"{score[0].upper()}{score[1:]}, and {judge}"


def _objections(measures: Measures, judged_side: int) -> list[str]:
  """What contradicts a win rate that lies on one side of a half."""
  objections = []
  reward_move = direction(measures.reward)
  if judged_side == 1 and reward_move == 0:
    objections.append("the score that it was trained on did not move beyond its noise")
  elif reward_move == -judged_side:
    words = "fell" if judged_side == 1 else "rose"
    objections.append(f"the score that it was trained on {words}")
  if direction(measures.lexicon) == -judged_side:
    words = "less" if judged_side == 1 else "more"
    objections.append(f"the lexicon finds the tone that was asked for {words} often")
  kl = measures.kl
  if judged_side == 1 and kl is not None and kl.high < HARDLY_MOVED:
    objections.append(f"it has hardly moved from its start ({page.minus(kl.value)} nats)")
  return objections


def _faults(measures: Measures) -> list[str]:
  """What a judge of single answers does not see, or sees too late."""
  faults = []
  empty = measures.empty
  if empty is not None and empty.after - empty.before > UNNOTICED_SHARE:
    faults.append(f"{page.percent(empty.after)} of its answers are empty")
  repeated = measures.repeated
  if repeated is not None and repeated.after - repeated.before > UNNOTICED_SHARE:
    faults.append(f"{page.percent(repeated.after)} of its answers repeat another one")
  distinct = measures.distinct
  if distinct is not None and distinct.after < (1 - UNNOTICED_LOSS) * distinct.before:
    faults.append("its answers vary less")
  return faults


def _listed(parts: Sequence[str]) -> str:
  """Returns a, b and c."""
  if len(parts) == 1:
    return parts[0]
  return f"{', '.join(parts[:-1])} and {parts[-1]}"


# --- what is known beside it, and what is not ---


def findings(measures: Measures) -> list[str]:
  """Returns a sentence for each measure, the wins apart."""
  sentences = []
  reward = measures.reward
  if reward is not None and measures.wins is not None:
    sentences.append(
      f"Score that it was trained on: {page.minus(reward.after)}, SFT's {_moved(reward)}."
    )
  judge = measures.judge
  if judge is not None:
    weak = " The paper's reward models reach 69.6 to 72.4\u00a0%." * (judge.value < WEAK_JUDGE)
    sentences.append(f"The judge is right on {page.with_ends(judge)} of held-out pairs.{weak}")
  lexicon = measures.lexicon
  if lexicon is not None:
    sentences.append(
      f"The lexicon finds the tone that was asked for in {page.percent(lexicon.after)} of its "
      f"answers, SFT's {_moved(lexicon, share=True)}."
    )
  kl = measures.kl
  if kl is not None:
    sentences.append(f"KL: {page.minus(kl.value)} nats a response away from its start.")
  distinct = measures.distinct
  if distinct is not None:
    sentences.append(
      f"Different pairs of words: {page.minus(distinct.after, 3)}, "
      f"SFT's {page.minus(distinct.before, 3)}."
    )
  for change, words in ((measures.empty, "Empty"), (measures.repeated, "Repeated")):
    if change is not None:
      sentences.append(
        f"{words} answers: {page.percent(change.after)}, SFT's {page.percent(change.before)}."
      )
  return sentences


def _moved(change: Change, share: bool = False) -> str:
  """Returns the old value, and whether the change is more than noise."""
  before = page.percent(change.before) if share else page.minus(change.before)
  move = direction(change)
  if move is None:
    return f"{before} (no interval)"
  if move:
    return f"{before}: clearly {'higher' if move == 1 else 'lower'}"
  least = f"{100 * change.half:.1f} points" if share else page.minus(change.half)
  return f"{before}: no clear difference, where one of {least} would be seen"


def unknown(measures: Measures) -> list[str]:
  """Returns what a reader would have to measure to be surer."""
  sentences = []
  if measures.wins is None and measures.gold is None:
    sentences.append(
      "Whether answers got better: name a second reward in `config.gold`, or compare with "
      "`instructjax eval --suite preference`."
    )
  elif measures.judge is None:
    sentences.append("How often the judge is right: compare it with people on held-out pairs.")
  if measures.reward is not None and direction(measures.reward) is None:
    sentences.append("Whether its score rose: no interval or too few iterations.")
  if measures.kl is None:
    sentences.append("How far it went from its start: no KL is measured.")
  return sentences
