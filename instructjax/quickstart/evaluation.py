"""The quickstart's numbers: how well the reward model ranks, and what each policy does on prompts
that no training saw.

Gold is a second reward model fitted on other texts with the ratings of other people; `follows`
is the VADER lexicon's verdict on the tone.  Neither is used in training or to choose anything.
Intervals are bootstraps over prompts.

Dimensions: N prompts, P prompt, R response, T = P + R.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from instructjax import intervals, likelihood, reward
from instructjax.data.batches import pipeline
from instructjax.data.public import tone, tone_measures
from instructjax.data.records.records import Comparison, Prompt
from instructjax.quickstart.world import Policy, World, with_stem
from instructjax.types import Params

LENGTH = 64  # tokens of a window of held-out pretraining text
ROWS = 16  # windows whose logits are in memory at a time
NOTES = (
  "The base model, SmolLM2-135M-Instruct, is already instruction-tuned: `base` is no raw language "
  "model.",
  "The labels are tone (praise or criticism), not helpfulness, truthfulness or harmlessness.",
  "The texts of a comparison are drawn from equal parts of the texts in the order of their tone, "
  "so few pairs are close.",
)


class Answers(NamedTuple):
  """What one policy does on the test prompts."""

  texts: list[str]
  score: dict[str, Float[np.ndarray, " N"]]
  kl: Float[np.ndarray, " N"]
  length: Float[np.ndarray, " N"]
  ended: Float[np.ndarray, " N"]
  follows: Float[np.ndarray, " N"]


def text_nll(world: World, rows: int) -> Callable[[Params], tuple[float, np.ndarray]]:
  """(nats per token, nats of each row) of held-out pretraining text under a policy; the stem is
  computed once.
  """
  windows = pipeline.text(world.tasks.text_valid, world.tokenizer, length=LENGTH)[:rows]
  batch = with_stem(world, pipeline.pad_demonstrations(windows, length=LENGTH))
  run = jax.jit(lambda params, part: likelihood.masked_logp(world.lm, world.trunk | params, part))
  parts = [
    jax.tree.map(lambda x, at=at: x[at : at + ROWS], batch) for at in range(0, len(windows), ROWS)
  ]

  def nll(params: Params) -> tuple[float, np.ndarray]:
    found = [run(params, part) for part in parts]
    logp, mask = (
      np.concatenate([np.asarray(x, np.float64) for x in column])
      for column in zip(*found, strict=True)
    )
    sums = -(logp * mask).sum(1)
    return float(sums.sum() / mask.sum()), sums / mask.sum(1)

  return nll


def scorer(
  world: World, judges: dict[str, Params]
) -> Callable[[Sequence[Comparison]], dict[str, list[list[float]]]]:
  """A function that gives each judge's score of every completion."""
  c = world.config
  pad = partial(pipeline.pad_comparisons, k=tone.K[1], length=c.prompt + c.response)
  one = lambda judge, batch: reward.score_comparisons(
    world.lm, reward.join(world.trunk, judge), batch
  )
  run = jax.jit(lambda judges, batch: {name: one(judge, batch) for name, judge in judges.items()})

  def scores(comparisons: Sequence[Comparison]) -> dict[str, list[list[float]]]:
    groups = pipeline.comparisons(
      comparisons, world.tokenizer, prompt=c.prompt, response=c.response
    )
    found: dict[str, list[list[float]]] = {name: [] for name in judges}
    for batch, real in pipeline.once(groups, pad, size=8):
      for name, score in run(judges, with_stem(world, batch)).items():
        found[name].extend(np.asarray(score)[:real].tolist())
    return found

  return scores


def answer(
  world: World,
  policy: Policy,
  judges: dict[str, Params],
  params: Params,
  ref: Params,
  records: Sequence[Prompt],
) -> Answers:
  """One response to each prompt, and its measures; the batch is that of the PPO rollout, so nothing
  compiles anew.
  """
  c = world.config
  rows = pipeline.prompts(records, world.tokenizer, prompt=c.prompt)
  texts: list[str] = []
  found: dict[str, list[np.ndarray]] = {}
  batches = pipeline.once(rows, lambda r: pipeline.pad_prompts(r, length=c.prompt), size=c.episodes)
  for i, (batch, real) in enumerate(batches):
    out = policy.sample(params, batch, jax.random.fold_in(jax.random.key(c.seed + 1), i))
    stem, score = policy.score(judges, out)
    kl = ((policy.logp(params, out, stem) - policy.logp(ref, out, stem)) * out.mask).sum(1)
    part = {"kl": kl, "length": out.mask.sum(1), "ended": out.ended, **score}
    for name, value in part.items():
      found.setdefault(name, []).append(np.asarray(value, np.float64)[:real])
    tokens, mask = np.asarray(out.tokens)[:real, -c.response :], np.asarray(out.mask)[:real]
    texts += [
      world.tokenizer.decode(t[m].tolist()).strip() for t, m in zip(tokens, mask, strict=True)
    ]
  columns = {name: np.concatenate(parts) for name, parts in found.items()}
  follows = np.asarray(
    [tone_measures.follows(r, t) for r, t in zip(records, texts, strict=True)], np.float64
  )
  judged = {name: columns[name] for name in judges}
  return Answers(texts, judged, columns["kl"], columns["length"], columns["ended"], follows)


def evaluate(
  world: World,
  policy: Policy,
  judges: dict[str, Params],
  trained: dict[str, Params],
  ref: Params,
  nll: Callable[[Params], tuple[float, np.ndarray]],
) -> dict[str, Any]:
  """The content of results.json; writes samples.jsonl on the way."""
  records = [record for part in world.tasks.test_prompts.values() for record in part]
  answers = {
    name: answer(world, policy, judges, params, ref, records) for name, params in trained.items()
  }
  _samples(world.workdir / "samples.jsonl", records, answers)
  base = answers["sft"].score["gold"]
  rows = {}
  for name, found in answers.items():
    mean = lambda x: intervals.mean(x)._asdict()
    gold = found.score["gold"]
    rows[name] = {
      "score": mean(found.score["reward"]),
      "gold": mean(gold),
      "follows": mean(found.follows),
      "win_rate_vs_sft": intervals.win_rate(gold, base)._asdict(),
      "win_rate_by_slice": {
        part: intervals.win_rate(gold[at], base[at])._asdict()
        for part, at in slices(records).items()
      },
      "kl": mean(found.kl),
      "length": mean(found.length),
      "eos_rate": mean(found.ended),
      "pretrain_nll": mean(nll(trained[name])[1]),
    }
  return {"rm": ranking(world, judges), "models": rows, "notes": list(NOTES)}


def slices(records: Sequence[Prompt]) -> dict[str, np.ndarray]:
  """Rows by domain, by direction, and by whether first words are given."""
  column = lambda f: np.asarray([f(r) for r in records])
  domain, direction = column(lambda r: r.source), column(lambda r: r.use_case)
  parts = {name: np.flatnonzero(domain == name) for name in tone.TEST}
  return parts | {name: np.flatnonzero(direction == name) for name in tone.DIRECTIONS}


def ranking(world: World, judges: dict[str, Params]) -> dict[str, Any]:
  """Pair accuracy of the reward model on held-out texts and templates, beside chance, the lexicon
  and people.
  """
  tests = world.tasks.test_comparisons
  known = [c for domain, part in tests.items() if domain != "amazon" for c in part]
  scores = scorer(world, judges)
  found = {domain: scores(part) for domain, part in tests.items()}
  flat = lambda name: [s for domain in tests if domain != "amazon" for s in found[domain][name]]
  accuracy = lambda s, c: tone_measures.pair_accuracy(s, c)._asdict()
  return {
    "pair_accuracy": accuracy(flat("reward"), known),
    "gold_pair_accuracy": accuracy(flat("gold"), known),
    "by_domain": {
      domain: accuracy(found[domain]["reward"], part) for domain, part in tests.items()
    },
    "references": {
      "chance": 0.5,
      "vader": tone_measures.vader_accuracy(known)._asdict(),
      "raters": tone_measures.rater_agreement(known)._asdict(),
      "ceiling": tone_measures.half_agreement(known)._asdict(),
    },
    "calibration": calibration(flat("reward"), known),
  }


def calibration(
  found: Sequence[Sequence[float]], comparisons: Sequence[Comparison], bins: int = 8
) -> list[dict]:
  """Of the pairs that the model gives probability p = sigmoid(difference) of being ordered so, the
  share that are.
  """
  p, right = [], []
  for score, comparison in zip(found, comparisons, strict=True):
    rank = np.asarray(comparison.ranks)
    value = np.asarray(score, np.float64)[: len(rank)]
    i, j = np.nonzero(rank[:, None] < rank[None, :])
    chance = 1 / (1 + np.exp(value[j] - value[i]))
    p.append(np.maximum(chance, 1 - chance))
    right.append(chance > 0.5)
  p, right = np.concatenate(p), np.concatenate(right)
  at = np.minimum(((p - 0.5) * 2 * bins).astype(int), bins - 1)
  return [
    {
      "p": float(p[at == b].mean()),
      "correct": float(right[at == b].mean()),
      "n": int((at == b).sum()),
    }
    for b in range(bins)
    if (at == b).any()
  ]


def _samples(path: Path, records: Sequence[Prompt], answers: dict[str, Answers]) -> None:
  lines = [
    json.dumps(
      {
        "prompt": record.prompt,
        "domain": record.source,
        "use_case": record.use_case,
        "responses": {name: found.texts[i] for name, found in answers.items()},
        "scores": {
          name: round(float(found.score["reward"][i]), 3) for name, found in answers.items()
        },
        "gold": {name: round(float(found.score["gold"][i]), 3) for name, found in answers.items()},
      },
      ensure_ascii=False,
    )
    for i, record in enumerate(records)
  ]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def show(results: dict[str, Any], page: Path) -> None:
  """Prints the tables."""
  from rich.console import Console
  from rich.table import Table

  console = Console()
  rm = results["rm"]
  span = lambda e: f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})"
  table = Table(title="Reward model: pairs ordered as people did, held-out texts and templates")
  for name in ("what", "accuracy, 95 % interval", "pairs"):
    table.add_column(name)
  rows = {"reward model": rm["pair_accuracy"]} | {
    f"  {name}": e for name, e in rm["by_domain"].items()
  }
  rows |= {"gold model": rm["gold_pair_accuracy"]}
  rows |= {
    "VADER lexicon": rm["references"]["vader"],
    "one rater against another": rm["references"]["raters"],
    "half of the raters against the other": rm["references"]["ceiling"],
  }
  for name, e in rows.items():
    table.add_row(name, span(e), str(e["n"]))
  console.print(table)
  models = results["models"]
  table = Table(title=f"Policies on {models['sft']['gold']['n']} prompts that no training saw")
  table.add_column("")
  for name in models:
    table.add_column(name)
  digits = {
    "score": 2,
    "gold": 2,
    "follows": 3,
    "kl": 2,
    "length": 1,
    "eos_rate": 3,
    "pretrain_nll": 3,
  }
  for key, places in digits.items():
    table.add_row(key, *(f"{m[key]['value']:.{places}f}" for m in models.values()))
  wins = (m["win_rate_vs_sft"] for m in models.values())
  table.add_row(
    "gold win rate against sft",
    *(f"{w['value']:.3f}\n{w['low']:.3f} to {w['high']:.3f}" for w in wins),
  )
  console.print(table)
  for note in results["notes"]:
    console.print(note, highlight=False)
  spent = "  ".join(f"{name} {seconds:.0f}" for name, seconds in results["seconds"].items())
  console.print(
    f"Seconds: {spent}.  Peak memory {results['peak_rss_gb']:.1f} GB.  Report: {page}",
    highlight=False,
  )
