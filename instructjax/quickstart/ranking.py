"""How well the reward model ranks, on comparisons of texts and templates that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructjax.data.batches import branches, pipeline
from instructjax.data.public import tone, tone_measures
from instructjax.data.records import ordering
from instructjax.data.records.records import Comparison
from instructjax.quickstart.models import Trained
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.stages import reward, stems

# No training data is of this domain. It is measured alone, and is in no mean.
NEW_DOMAIN = "amazon"
# The bins of the calibration.
BINS = 8

# The scores of each completion, for each comparison.
Scores = list[list[float]]


def measure(
  settings: QuickstartSettings,
  trained: Trained,
  comparisons: dict[str, list[Comparison]],
) -> dict[str, Any]:
  """Returns `rm` of results.json: accuracies of pairs, what they compare with, and calibration.

  Args:
    settings: The lengths of prompts and responses.
    trained: The models.
    comparisons: The test comparisons by domain.
  """
  # The new domain comes last, so that the others are the first ones.
  domains = [domain for domain in comparisons if domain != NEW_DOMAIN]
  domains.append(NEW_DOMAIN)
  records: list[Comparison] = []
  for domain in domains:
    records += comparisons[domain]
  # All domains are scored together, because each call would compile anew.
  scores = score(settings, trained, records)

  by_domain = {}
  first = 0
  for domain in domains:
    end = first + len(comparisons[domain])
    by_domain[domain] = accuracy(scores["reward"][first:end], records[first:end])
    first = end

  count = len(records) - len(comparisons[NEW_DOMAIN])
  records = records[:count]
  reward_scores = scores["reward"][:count]
  gold_scores = scores["gold"][:count]
  by_direction = {}
  for direction in tone.DIRECTIONS:
    numbers = [number for number in range(count) if records[number].use_case == direction]
    by_direction[direction] = accuracy(
      [reward_scores[number] for number in numbers], [records[number] for number in numbers]
    )
  return {
    "pair_accuracy": accuracy(reward_scores, records),
    "gold_pair_accuracy": accuracy(gold_scores, records),
    "by_domain": by_domain,
    "by_direction": by_direction,
    "references": references(records),
    "calibration": calibration(reward_scores, records),
  }


def accuracy(scores: Scores, records: Sequence[Comparison]) -> dict[str, Any]:
  """Returns the share of pairs that the scores order as people did."""
  estimate = tone_measures.pair_accuracy(scores, records)
  return estimate._asdict()


def references(records: Sequence[Comparison]) -> dict[str, Any]:
  """Returns what an accuracy compares with: chance, a lexicon, and people."""
  lexicon = tone_measures.vader_accuracy(records)
  raters = tone_measures.rater_agreement(records)
  # No model can agree with people more than one half of them agrees with the other.
  ceiling = tone_measures.half_agreement(records)
  return {
    "chance": 0.5,
    "vader": lexicon._asdict(),
    "raters": raters._asdict(),
    "ceiling": ceiling._asdict(),
  }


def score(
  settings: QuickstartSettings,
  trained: Trained,
  records: Sequence[Comparison],
) -> dict[str, Scores]:
  """Returns the score of every completion by each of the reward models."""
  groups = pipeline.comparisons(
    records,
    trained.tokenizer,
    prompt=settings.prompt,
    response=settings.response,
    template=trained.template,
  )
  packable = [branches.of_group(group) for group in groups]
  # The trunk is the same for all models, so it reads the rows once.
  if "lower" in trained.trunk:
    packable = stems.kept_branches(trained.lm, trained.trunk, packable, trained.dtype)
  scores_of = reward.reward_scores(trained.lm, packable, 1)
  return {
    name: scores_of(trained.trunk, reward_model).tolist()
    for name, reward_model in trained.reward_models.items()
  }


def calibration(
  scores: Scores,
  records: Sequence[Comparison],
  bins: int = BINS,
) -> list[dict[str, Any]]:
  """Returns how often the reward model is right, by how sure it is (`ordering.reliability`)."""
  pairs = ordering.pairs_of(scores, records)
  return ordering.reliability(pairs.difference, bins)
