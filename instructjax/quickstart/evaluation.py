"""The quickstart's numbers: how well the reward model ranks, and what each policy does.

The prompts and the comparisons are of texts and templates that no training saw. Gold is a second
reward model, fitted on other texts with the ratings of other people. `follows` is the verdict of
the VADER lexicon on the tone. Neither of them trains or chooses anything. Intervals are bootstraps
over prompts.

Dimensions: N rows, K completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from instructjax import intervals, likelihood, reward
from instructjax.data.batches import pipeline
from instructjax.data.public import tone, tone_measures
from instructjax.data.records.records import Comparison, Prompt, Text
from instructjax.quickstart import data
from instructjax.quickstart.answers import Answers, answerer
from instructjax.quickstart.models import Trained
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.stages import stems
from instructjax.types import Comparisons, Demonstrations, Params, PyTree

WINDOW = 64  # tokens of a row of held-out text
TEXT_ROWS = 16  # rows of held-out text whose logits are in memory together
COMPARISONS = 8  # comparisons that are scored together
# The domain that is in no training data. It has a row of its own and is in no mean.
NEW_DOMAIN = "amazon"
NOTES = (
  "The base model, SmolLM2-135M-Instruct, is already instruction-tuned: `base` is no raw language "
  "model.",
  "The labels are tone (praise or criticism), not helpfulness, truthfulness or harmlessness.",
  "The texts of a comparison are drawn from equal parts of the texts in the order of their tone, "
  "so few pairs are close.",
)

# The scores of each completion, for each comparison.
Scores = list[list[float]]


class Measured(NamedTuple):
  """What the evaluation found.

  results   the content of results.json
  samples   the lines of samples.jsonl
  metrics   lines of metrics.jsonl: the loss on held-out text before and after PPO
  """

  results: dict[str, Any]
  samples: list[dict[str, Any]]
  metrics: tuple[dict[str, Any], ...]


def evaluate(settings: QuickstartSettings, trained: Trained, folder: Path) -> Measured:
  """Measures the models on the test data in a folder."""
  prompts = data.test_prompts(folder)
  answer = answerer(settings, trained)
  answers = {}
  for name, policy in trained.policies.items():
    answers[name] = answer(policy, prompts)
  losses = text_loss(trained, data.held_out_text(folder), settings.text_valid)
  rows = policy_rows(trained, answers, prompts, losses)
  comparisons = data.test_comparisons(folder)
  results = {
    "rm": ranking(settings, trained, comparisons),
    "models": rows,
    "notes": list(NOTES),
  }
  start = float(losses(trained.reference).mean())
  metrics = []
  for name in ("ppo", "ptx"):
    for step, nll in ((0, start), (settings.iterations, rows[name]["pretrain_nll"]["value"])):
      metrics.append({"step": step, "stage": name, "eval/pretrain_nll": nll})
  return Measured(results, samples(prompts, answers), tuple(metrics))


# --- the policies ---


def policy_rows(
  trained: Trained,
  answers: dict[str, Answers],
  prompts: Sequence[Prompt],
  losses: Callable[[Params], Float[np.ndarray, " N"]],
) -> dict[str, dict[str, Any]]:
  """Returns the means of every measure by the name of the policy, with their intervals."""
  sft_gold = answers["sft"].scores["gold"]
  parts = slices(prompts)
  rows = {}
  for name, answer in answers.items():
    gold = answer.scores["gold"]
    wins_by_slice = {}
    for part, members in parts.items():
      wins = intervals.win_rate(gold[members], sft_gold[members])
      wins_by_slice[part] = wins._asdict()
    means = {
      "score": answer.scores["reward"],
      "gold": gold,
      "follows": answer.follows,
      "kl": answer.kl,
      "length": answer.length,
      "eos_rate": answer.ended,
      "pretrain_nll": losses(trained.policies[name]),
    }
    row: dict[str, Any] = {}
    for measure, values in means.items():
      row[measure] = intervals.mean(values)._asdict()
    row["win_rate_vs_sft"] = intervals.win_rate(gold, sft_gold)._asdict()
    row["win_rate_by_slice"] = wins_by_slice
    rows[name] = row
  return rows


def slices(prompts: Sequence[Prompt]) -> dict[str, Int[np.ndarray, " n"]]:
  """Returns the numbers of the prompts of each domain, and of each direction."""
  domains = np.asarray([prompt.source for prompt in prompts])
  directions = np.asarray([prompt.use_case for prompt in prompts])
  members = {}
  for name in tone.TEST:
    members[name] = np.flatnonzero(domains == name)
  for name in tone.DIRECTIONS:
    members[name] = np.flatnonzero(directions == name)
  return members


def samples(prompts: Sequence[Prompt], answers: dict[str, Answers]) -> list[dict[str, Any]]:
  """Returns a line for each prompt: the response of every policy, and its scores."""

  def rounded(judge: str, row: int) -> dict[str, float]:
    scores = {}
    for name, answer in answers.items():
      scores[name] = round(float(answer.scores[judge][row]), 3)
    return scores

  lines = []
  for row, prompt in enumerate(prompts):
    line = {
      "prompt": prompt.prompt,
      "domain": prompt.source,
      "use_case": prompt.use_case,
      "responses": {name: answer.texts[row] for name, answer in answers.items()},
      "scores": rounded("reward", row),
      "gold": rounded("gold", row),
    }
    lines.append(line)
  return lines


def text_loss(
  trained: Trained, texts: Sequence[Text], count: int
) -> Callable[[Params], Float[np.ndarray, " N"]]:
  """Returns a function of a policy: the nats a token of each row of held-out pretraining text."""
  windows = pipeline.text(texts, trained.tokenizer, length=WINDOW)[:count]
  rows = with_stems(trained, pipeline.pad_demonstrations(windows, length=WINDOW))

  @jax.jit
  def logp_of_rows(trunk: Params, policy: Params, batch: Demonstrations) -> Any:
    return likelihood.masked_logp(trained.lm, trunk | policy, batch)

  def losses(policy: Params) -> Float[np.ndarray, " N"]:
    losses_of_parts = []
    for numbers, real in pipeline.once(range(len(windows)), np.asarray, size=TEXT_ROWS):
      logp, mask = logp_of_rows(trained.trunk, policy, take(rows, numbers))
      logp = np.asarray(logp, np.float64)[:real]
      mask = np.asarray(mask)[:real]
      losses_of_parts.append(-(logp * mask).sum(1) / mask.sum(1))
    return np.concatenate(losses_of_parts)

  return losses


# --- the reward model ---


def ranking(
  settings: QuickstartSettings, trained: Trained, comparisons: dict[str, list[Comparison]]
) -> dict[str, Any]:
  """Returns the pair accuracy of the reward model, beside chance, the lexicon and people."""
  # The new domain comes last, so that the others are the first ones.
  domains = sorted(comparisons, key=lambda domain: domain == NEW_DOMAIN)
  records = [record for domain in domains for record in comparisons[domain]]
  scores = score_comparisons(settings, trained, records)
  by_domain, first = {}, 0
  for domain in domains:
    part = slice(first, first + len(comparisons[domain]))
    by_domain[domain] = accuracy(scores["reward"][part], records[part])
    first = part.stop
  trained_on = slice(0, len(records) - len(comparisons[NEW_DOMAIN]))
  records = records[trained_on]
  return {
    "pair_accuracy": accuracy(scores["reward"][trained_on], records),
    "gold_pair_accuracy": accuracy(scores["gold"][trained_on], records),
    "by_domain": by_domain,
    "references": {
      "chance": 0.5,
      "vader": tone_measures.vader_accuracy(records)._asdict(),
      "raters": tone_measures.rater_agreement(records)._asdict(),
      "ceiling": tone_measures.half_agreement(records)._asdict(),
    },
    "calibration": calibration(scores["reward"][trained_on], records),
  }


def accuracy(scores: Scores, records: Sequence[Comparison]) -> dict[str, Any]:
  """Returns the share of pairs that the scores order as people did."""
  return tone_measures.pair_accuracy(scores, records)._asdict()


def score_comparisons(
  settings: QuickstartSettings, trained: Trained, records: Sequence[Comparison]
) -> dict[str, Scores]:
  """Returns the scores of every completion by each of the reward models."""
  groups = pipeline.comparisons(
    records, trained.tokenizer, prompt=settings.prompt, response=settings.response
  )
  length = settings.prompt + settings.response
  rows = with_stems(trained, pipeline.pad_comparisons(groups, k=tone.K[1], length=length))

  @jax.jit
  def scores_of(trunk: Params, reward_model: Params, batch: Comparisons) -> Any:
    whole = reward.join(trunk, reward_model)
    return reward.score_comparisons(trained.lm, whole, batch)

  scores: dict[str, Scores] = {name: [] for name in trained.reward_models}
  for numbers, real in pipeline.once(range(len(groups)), np.asarray, size=COMPARISONS):
    batch = take(rows, numbers)
    for name, reward_model in trained.reward_models.items():
      values = scores_of(trained.trunk, reward_model, batch)
      scores[name].extend(np.asarray(values)[:real].tolist())
  return scores


def calibration(
  scores: Scores, records: Sequence[Comparison], bins: int = 8
) -> list[dict[str, Any]]:
  """Returns how often the reward model is right, by how sure it is.

  It gives p = sigmoid(difference of the scores) to the order of a pair that it thinks right. A bin
  has the mean p of its pairs, the share of them that people ordered so, and their number.
  """
  probabilities, right = [], []
  for score, record in zip(scores, records, strict=True):
    rank = np.asarray(record.ranks)
    value = np.asarray(score, np.float64)[: len(rank)]
    # Every pair that does not tie: people like its text `better` more than its text `worse`.
    better, worse = np.nonzero(rank[:, None] < rank[None, :])
    p_of_people = 1 / (1 + np.exp(value[worse] - value[better]))
    probabilities.append(np.maximum(p_of_people, 1 - p_of_people))
    right.append(p_of_people > 0.5)
  p = np.concatenate(probabilities)
  is_right = np.concatenate(right)
  # Equal bins from 0.5 to 1, where the last one has 1 itself too.
  bin_of_pair = np.minimum(((p - 0.5) * 2 * bins).astype(int), bins - 1)
  table = []
  for number in range(bins):
    members = bin_of_pair == number
    if members.any():
      row = {
        "p": float(p[members].mean()),
        "correct": float(is_right[members].mean()),
        "n": int(members.sum()),
      }
      table.append(row)
  return table


# --- rows with the activations of the trunk ---


def with_stems(trained: Trained, rows: PyTree) -> PyTree:
  """Returns rows with what the trunk makes of them, for all models at once, if there is a trunk."""
  if "lower" not in trained.trunk:
    return rows
  return stems.with_stems(trained.lm, trained.trunk, rows, trained.dtype)


def take(rows: PyTree, numbers: Int[np.ndarray, " n"]) -> PyTree:
  """Returns some rows of arrays on the host."""
  return jax.tree.map(lambda array: np.asarray(array)[numbers], rows)
