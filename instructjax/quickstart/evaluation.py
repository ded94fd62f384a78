"""The quickstart's numbers: how well the reward model ranks, and what each policy does.

The prompts and the comparisons are of texts and templates that no training saw. Gold is a second
reward model, fitted on other texts with the ratings of other people. `follows` is the verdict of
the VADER lexicon on the tone. Neither of them trains or chooses anything. Intervals are over
prompts.

Dimensions: N prompts, or rows of text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from instructjax import intervals, likelihood
from instructjax.data.batches import pipeline
from instructjax.data.public import tone
from instructjax.data.records.records import Prompt, Text
from instructjax.quickstart import data, ranking, rows
from instructjax.quickstart.answers import Answers, answerer
from instructjax.quickstart.models import Trained
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.types import Demonstrations, Params

# Tokens of a row of held-out text.
TEXT_LENGTH = 64
# Rows of held-out text whose logits are in memory together.
TEXT_BATCH = 16
# What a reader has to know beside the numbers.
NOTES = (
  "The base model, SmolLM2-135M-Instruct, is already instruction-tuned: `base` is no raw language "
  "model.",
  "The labels are tone (praise or criticism), not helpfulness, truthfulness or harmlessness.",
  "The texts of a comparison are drawn from equal parts of the texts in the order of their tone, "
  "so few pairs are close.",
)

# Maps the trained part of a policy to the nats a token of each row of held-out text.
TextLoss = Callable[[Params], Float[np.ndarray, " N"]]


class Measured(NamedTuple):
  """What the evaluation has measured.

  results   the content of results.json
  samples   the lines of samples.jsonl
  metrics   lines of metrics.jsonl: the loss on held-out text before and after PPO
  """

  results: dict[str, Any]
  samples: list[dict[str, Any]]
  metrics: list[dict[str, Any]]


def evaluate(settings: QuickstartSettings, trained: Trained, folder: Path) -> Measured:
  """Measures the models on the test data in a folder."""
  prompts = data.test_prompts(folder)
  answer = answerer(settings, trained)
  answers = {}
  for name, policy in trained.policies.items():
    answers[name] = answer(policy, prompts)

  held_out = data.held_out_text(folder)
  text_loss = text_loss_on(trained, held_out, settings.text_valid)
  losses = {}
  for name, policy in trained.policies.items():
    losses[name] = text_loss(policy)
  loss_at_start = text_loss(trained.reference)

  comparisons = data.test_comparisons(folder)
  results = {
    "rm": ranking.measure(settings, trained, comparisons),
    "models": policy_rows(answers, losses, slices(prompts)),
    "notes": list(NOTES),
  }
  metrics = []
  for name in ("ppo", "ptx"):
    # PPO itself measures no held-out text: the curve has two points.
    for step, loss in ((0, loss_at_start), (settings.iterations, losses[name])):
      point = {"step": step, "stage": name, "eval/pretrain_nll": float(loss.mean())}
      metrics.append(point)
  return Measured(results, sample_rows(prompts, answers), metrics)


# --- the policies ---


def policy_rows(
  answers: dict[str, Answers],
  losses: dict[str, Float[np.ndarray, " N"]],
  members_by_slice: dict[str, Int[np.ndarray, " n"]],
) -> dict[str, dict[str, Any]]:
  """Returns `models` of results.json: every measure of every policy with its interval."""
  sft_gold = answers["sft"].scores["gold"]
  rows_by_name = {}
  for name, answer in answers.items():
    gold = answer.scores["gold"]
    values = {
      "score": answer.scores["reward"],
      "gold": gold,
      "follows": answer.follows,
      "kl": answer.kl,
      "length": answer.length,
      "eos_rate": answer.ended,
      "pretrain_nll": losses[name],
    }
    row: dict[str, Any] = {}
    for measure, column in values.items():
      row[measure] = intervals.mean(column)._asdict()

    # A prompt is won where the response has a higher gold score than that of the SFT model, which
    # has no win rate against itself.
    if name != "sft":
      row["win_rate_vs_sft"] = intervals.win_rate(gold, sft_gold)._asdict()
      wins_by_slice = {}
      for part, members in members_by_slice.items():
        wins = intervals.win_rate(gold[members], sft_gold[members])
        wins_by_slice[part] = wins._asdict()
      row["win_rate_by_slice"] = wins_by_slice
    rows_by_name[name] = row
  return rows_by_name


def slices(prompts: Sequence[Prompt]) -> dict[str, Int[np.ndarray, " n"]]:
  """Returns the numbers of the prompts of each domain, and of each direction."""
  # Each prompt is in two slices.
  domains = np.asarray([prompt.source for prompt in prompts])
  directions = np.asarray([prompt.use_case for prompt in prompts])
  members = {}
  for name in tone.TEST:
    members[name] = np.flatnonzero(domains == name)
  for name in tone.DIRECTIONS:
    members[name] = np.flatnonzero(directions == name)
  return members


def sample_rows(prompts: Sequence[Prompt], answers: dict[str, Answers]) -> list[dict[str, Any]]:
  """Returns a line of samples.jsonl for each prompt: what every policy says, and its scores."""
  lines = []
  for number, prompt in enumerate(prompts):
    responses = {}
    scores = {}
    gold_scores = {}
    for name, answer in answers.items():
      responses[name] = answer.texts[number]
      scores[name] = round(float(answer.scores["reward"][number]), 3)
      gold_scores[name] = round(float(answer.scores["gold"][number]), 3)
    line = {
      "prompt": prompt.prompt,
      "domain": prompt.source,
      "use_case": prompt.use_case,
      "responses": responses,
      "scores": scores,
      "gold": gold_scores,
    }
    lines.append(line)
  return lines


# --- pretraining text: what RL costs on it, with and without the mix ---


def text_loss_on(trained: Trained, texts: Sequence[Text], count: int) -> TextLoss:
  """Returns the loss of a policy on the first `count` rows of text that no stage has seen."""
  windows = pipeline.text(texts, trained.tokenizer, length=TEXT_LENGTH)
  windows = windows[:count]
  padded = pipeline.pad_demonstrations(windows, length=TEXT_LENGTH)
  padded = rows.with_stems(trained, padded)

  @jax.jit
  def token_logp(trunk: Params, policy: Params, batch: Demonstrations) -> Any:
    return likelihood.masked_logp(trained.lm, trunk | policy, batch)

  def text_loss(policy: Params) -> Float[np.ndarray, " N"]:
    losses = []
    for batch, real in rows.batches(padded, len(windows), TEXT_BATCH):
      logp, mask = token_logp(trained.trunk, policy, batch)
      logp = np.asarray(logp, np.float64)[:real]
      mask = np.asarray(mask)[:real]
      # The weights of a row sum to 1, so the interval is over rows and not over tokens.
      nats = -(logp * mask).sum(1)
      losses.append(nats / mask.sum(1))
    return np.concatenate(losses)

  return text_loss
