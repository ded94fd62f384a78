"""The findings about one set of prompts: those of each judge, and those of each rater."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from instructjax.data.records.records import RATINGS
from instructjax.evals.preference import bradley_terry, figures, rates, votes
from instructjax.evals.preference.people import RatedAnswer
from instructjax.evals.preference.votes import Vote

# Figure 4 plots the opposite of these two flags.
OPPOSITES = {
  "fails_instruction": "attempts_instruction",
  "inappropriate": "appropriate",
}
# The order of models in a pair, by their names in the paper; others come last.
PAIR_ORDER = {"PPO_ptx": 0, "PPO": 1, "SFT": 2, "": 3}


def of_votes(
  judged: Sequence[Vote],
  models: Sequence[str],
  baseline: str,
  seed: int,
) -> dict[str, Any]:
  """Returns all numbers that a judge's votes give; the package docstring lists them."""
  # The same draws for all numbers, so that they can be compared.
  draws = votes.draw(judged, seed=seed)
  # People may have ranked only some of the models.
  judged_models = {vote.a for vote in judged} | {vote.b for vote in judged}
  present = [name for name in models if name in judged_models]
  others = [name for name in present if name != baseline]
  against_baseline = {}
  for name in others:
    rates_of_model = rates.rates_against(name, baseline, judged, draws)
    if rates_of_model is not None:
      against_baseline[name] = rates_of_model
  head_to_head = {}
  consistency = {}
  # Pairs without the baseline.
  for a, b in combinations(_ordered(others), 2):
    pair = f"{a} / {b}"
    pair_votes = votes.between(judged, a, b)
    if pair_votes:
      head_to_head[pair] = {
        "a": a,
        "b": b,
        "rate": votes.shares(pair_votes, [vote.won for vote in pair_votes], paired=True),
        "paper": figures.headline(a, b),
      }
    comparison = bradley_terry.consistency(a, b, baseline, judged, draws)
    if comparison is not None:
      consistency[pair] = comparison
  return {
    "votes": len(judged),
    "prompts": len(draws.prompt),
    "labelers": len(draws.labeler),
    "same": sum(vote.orders == (0.5,) and vote.ratio == 0 for vote in judged),
    "order": rates.order_effect(judged),
    "against_baseline": against_baseline,
    "head_to_head": head_to_head,
    "bradley_terry": bradley_terry.strengths_and_rates(present, judged, draws, baseline),
    "consistency": consistency,
  }


def _ordered(models: Sequence[str]) -> list[str]:
  """Returns models with the paper's own method first, so that a pair reads "ptx / base"."""
  last = len(PAIR_ORDER)
  return sorted(models, key=lambda name: PAIR_ORDER.get(figures.paper_name(name), last))


def of_ratings(
  rated: Sequence[RatedAnswer],
  closed: Mapping[str, bool],
) -> dict[str, Any]:
  """Returns the mean of each rating for each model.

  `closed` says which prompts are closed-domain, where their annotations do. As in the paper,
  hallucination then counts on those alone.

  The fields are:
    n          the number of ratings
    labelers   the number of labelers
    over       {measure: the prompts that it counts on, where not all}
    measures   {measure: {model: shares}}
  """
  # A rating has no opponent; as a vote it belongs to its prompt and its labeler.
  as_votes = [Vote(each.prompt, each.model, "", (), labeler=each.labeler) for each in rated]
  labelers = {each.labeler for each in rated}
  measures: dict[str, dict[str, Any]] = {}
  over: dict[str, str] = {}
  for name in RATINGS:
    places = [at for at, each in enumerate(rated) if name in each.rating]
    if name == "hallucination" and closed:
      places = [at for at in places if closed.get(rated[at].prompt)]
      over[name] = "closed-domain prompts"
    # Which ratings are of which model.
    places_by_model: dict[str, list[int]] = {}
    for at in places:
      places_by_model.setdefault(rated[at].model, []).append(at)
    for model, model_places in places_by_model.items():
      values = [_measure_value(name, rated[at].rating) for at in model_places]
      model_votes = [as_votes[at] for at in model_places]
      shares = votes.shares(model_votes, values)
      measures.setdefault(OPPOSITES.get(name, name), {})[model] = shares
  return {"n": len(rated), "labelers": len(labelers), "over": over, "measures": measures}


def _measure_value(name: str, rating: Mapping[str, Any]) -> float:
  """Returns a rating as a number, of the opposite flag where Figure 4 plots that."""
  value = float(rating[name])
  return 1.0 - value if name in OPPOSITES else value
