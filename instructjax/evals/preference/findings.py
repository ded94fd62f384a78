"""What a suite says of one set of prompts: of each judge, and of each rater."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from instructjax.data.records.records import RATINGS
from instructjax.evals.preference import bradley_terry, figures, rates, votes
from instructjax.evals.preference.people import Rated
from instructjax.evals.preference.votes import Vote

TURNED = {
  "fails_instruction": "attempts_instruction",
  "inappropriate": "appropriate",
}  # Figure 4 plots the opposite


def of_votes(
  judged: Sequence[Vote], models: Sequence[str], baseline: str, seed: int
) -> dict[str, Any]:
  """All that a judge's votes say; its layout stands in the package."""
  draws = votes.draw(judged, seed=seed)
  known = [name for name in models if any(name in (v.a, v.b) for v in judged)]
  others = [name for name in known if name != baseline]
  direct = {
    f"{a} / {b}": {
      "a": a,
      "b": b,
      "rate": votes.shares(draws, found, [v.won for v in found]),
      "paper": figures.headline(a, b),
    }
    for a, b in combinations(_ordered(others), 2)
    if (found := votes.of(judged, a, b))
  }
  agree = {
    f"{a} / {b}": bradley_terry.consistency(a, b, baseline, judged, draws)
    for a, b in combinations(_ordered(others), 2)
  }
  each = {name: rates.against(name, baseline, judged, draws) for name in others}
  return {
    "votes": len(judged),
    "prompts": len(draws.prompt),
    "labelers": len(draws.labeler),
    "same": sum(v.orders == (0.5,) and v.ratio == 0 for v in judged),
    "order": rates.order(judged, draws),
    "against_baseline": {name: row for name, row in each.items() if row is not None},
    "head_to_head": direct,
    "bradley_terry": bradley_terry.fitted(known, judged, draws, baseline),
    "consistency": {pair: found for pair, found in agree.items() if found is not None},
  }


def _ordered(models: Sequence[str]) -> list[str]:
  """The paper's own model first, so that a pair reads "ptx / base"."""
  last = {"PPO_ptx": 0, "PPO": 1, "SFT": 2, "": 3}
  return sorted(models, key=lambda name: last.get(figures.of(name), 4))


def of_ratings(rated: Sequence[Rated], closed: Mapping[str, bool], seed: int) -> dict[str, Any]:
  """{"n": ratings, "labelers", "over": {measure: what it is counted over}, "measures": {measure:
  {model: shares}}}.

  Hallucination counts on closed-domain prompts, as in the paper, where the prompts' annotations
  say which these are.
  """
  as_votes = [Vote(one.prompt, one.model, "", (), labeler=one.labeler) for one in rated]
  draws = votes.draw(as_votes, seed=seed)
  measures: dict[str, dict[str, Any]] = {}
  over: dict[str, str] = {}
  for name in RATINGS:
    kept = [at for at, one in enumerate(rated) if name in one.rating]
    if name == "hallucination" and closed:
      kept, over[name] = (
        [at for at in kept if closed.get(rated[at].prompt)],
        "closed-domain prompts",
      )
    turn = (lambda value: 1.0 - value) if name in TURNED else float
    for model in Counter(rated[at].model for at in kept):
      mine = [at for at in kept if rated[at].model == model]
      values = [turn(rated[at].rating[name]) for at in mine]
      measures.setdefault(TURNED.get(name, name), {})[model] = votes.shares(
        draws, [as_votes[at] for at in mine], values
      )
  return {"n": len(rated), "labelers": len(draws.labeler), "over": over, "measures": measures}
