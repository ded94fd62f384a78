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
from instructjax.data.records.records import Demonstration, Text
from instructjax.quickstart import data, judging, ranking, rows
from instructjax.quickstart.answers import Answers, answerer
from instructjax.quickstart.judging import Judged
from instructjax.quickstart.models import Trained
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.types import Demonstrations, Params

# The authors of answers, as the tables have them: people's own sentences come last.
BEST = "best_of_n"
AUTHORS = ("base", "sft", BEST, "ppo", "ptx", "people")
# They are compared with all others.
RIVALS = ("sft", "base")
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
  """Measures the models, and what people wrote, on the test data in a folder."""
  prompts = data.test_prompts(folder)
  answer = answerer(settings, trained)
  answers = {}
  for name, policy in trained.policies.items():
    answers[name] = answer.measure(answer.draw(policy, prompts))
  texts = {name: answers[name].texts for name in answers}
  texts["people"] = [prompt.completion for prompt in prompts]
  # Best-of-n chooses among the answer of SFT and n - 1 others.
  draws = ["sft"]
  for draw in range(1, settings.best_of):
    name = f"sft {draw}"
    texts[name] = answer.texts(answer.draw(trained.policies["sft"], prompts, draw))
    draws.append(name)

  judged = judging.judge(settings, trained, prompts, texts)
  best_texts, best = judging.best_of([(texts[name], judged[name]) for name in draws])
  for name in draws[1:]:
    del texts[name], judged[name]
  texts[BEST], judged[BEST] = best_texts, best

  held_out = data.held_out_text(folder)
  text_loss = text_loss_on(trained, held_out, settings.text_valid)
  losses = {}
  for name, policy in trained.policies.items():
    losses[name] = text_loss(policy)
  loss_at_start = text_loss(trained.reference)

  comparisons = data.test_comparisons(folder)
  results = {
    "rm": ranking.measure(settings, trained, comparisons),
    "models": author_rows(texts, judged, answers, losses, slices(prompts)),
    "notes": list(NOTES),
  }
  metrics = []
  for name in ("ppo", "ptx"):
    # PPO itself measures no held-out text: the curve has two points.
    for step, loss in ((0, loss_at_start), (settings.iterations, losses[name])):
      point = {"step": step, "stage": name, "eval/pretrain_nll": float(loss.mean())}
      metrics.append(point)
  return Measured(results, sample_rows(prompts, texts, judged), metrics)


# --- the policies and people ---


def author_rows(
  texts: dict[str, list[str]],
  judged: dict[str, Judged],
  answers: dict[str, Answers],
  losses: dict[str, Float[np.ndarray, " N"]],
  members_by_slice: dict[str, Int[np.ndarray, " n"]],
) -> dict[str, dict[str, Any]]:
  """Returns `models` of results.json: every measure of every author with its interval."""
  rows_by_name = {}
  for name in AUTHORS:
    verdict = judged[name]
    is_empty = np.asarray([not text for text in texts[name]])
    values = {
      "score": verdict.scores["reward"],
      "gold": verdict.scores["gold"],
      "follows": verdict.follows,
      "directed": judging.directed(verdict),
      "empty": is_empty.astype(np.float64),
      "repeated": judging.repeated(texts[name]),
    }
    for direction in tone.DIRECTIONS:
      values[f"follows_{direction}"] = verdict.follows[members_by_slice[direction]]
    # What people wrote was not sampled, and best-of-n is no model of its own.
    if name in answers:
      answer = answers[name]
      values |= {
        "kl": answer.kl,
        "length": answer.length,
        "eos_rate": answer.ended,
        "pretrain_nll": losses[name],
      }
    row: dict[str, Any] = {}
    for measure, column in values.items():
      row[measure] = intervals.mean(column)._asdict()
    row["distinct"] = judging.distinct(texts[name])
    for rival in RIVALS:
      if name != rival:
        row |= wins_against(rival, name, texts, judged, members_by_slice)
    rows_by_name[name] = row
  return rows_by_name


def wins_against(
  rival: str,
  name: str,
  texts: dict[str, list[str]],
  judged: dict[str, Judged],
  members_by_slice: dict[str, Int[np.ndarray, " n"]],
) -> dict[str, Any]:
  """Returns how often an author has the higher gold score, on all prompts and on slices of them."""
  ours = judged[name].scores["gold"]
  theirs = judged[rival].scores["gold"]
  by_slice = {}
  for part, members in members_by_slice.items():
    by_slice[part] = intervals.win_rate(ours[members], theirs[members])._asdict()
  # An empty answer is easily beaten.
  both = [bool(a and b) for a, b in zip(texts[name], texts[rival], strict=True)]
  answered = np.flatnonzero(both)
  return {
    f"win_rate_vs_{rival}": intervals.win_rate(ours, theirs)._asdict(),
    f"win_rate_vs_{rival}_by_slice": by_slice,
    f"win_rate_vs_{rival}_answered": intervals.win_rate(ours[answered], theirs[answered])._asdict(),
  }


def slices(prompts: Sequence[Demonstration]) -> dict[str, Int[np.ndarray, " n"]]:
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


def sample_rows(
  prompts: Sequence[Demonstration], texts: dict[str, list[str]], judged: dict[str, Judged]
) -> list[dict[str, Any]]:
  """Returns a line of samples.jsonl for each prompt: what everybody says, and the scores."""
  lines = []
  for number, prompt in enumerate(prompts):
    responses = {}
    scores = {}
    gold_scores = {}
    for name in AUTHORS:
      verdict = judged[name].scores
      responses[name] = texts[name][number]
      scores[name] = round(float(verdict["reward"][number]), 3)
      gold_scores[name] = round(float(verdict["gold"][number]), 3)
    line = {
      "prompt": data.instruction(prompt),
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
