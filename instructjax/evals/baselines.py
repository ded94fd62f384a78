"""The prompted baseline (Ouyang et al. 2022, section 3.5): the few-shot prefix whose answers a
reward model likes best.

  instructjax baseline prefix --model=BASE --candidates=a.txt,b.txt --prompts=valid.jsonl
  --reward=runs/reward --out=best.txt

In the paper two people wrote two prefixes each, and the one that scored highest on validation
prompts was kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax import intervals, rewards
from instructjax.data.records import sources
from instructjax.errors import UserError
from instructjax.evals import subject
from instructjax.evals.tasks import Generate
from instructjax.intervals import Estimate
from instructjax.runs import writers
from instructjax.stages import running

# Ml_collections.ConfigDict: configs/eval.py, of which model, template, preference and seed count
Config = Any


class Candidate(NamedTuple):
  """A prefix, and what the answers after it are worth.

  mean     with a 95 % interval over prompts
  behind   how far it lies behind the best one on the same prompts; 0 for that one
  """

  name: str
  mean: Estimate
  behind: Estimate
  scores: tuple[float, ...]


def select_prefix(
  candidates: Mapping[str, str],
  sample: Callable[[Sequence[str]], Sequence[str]],
  reward: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
  prompts: Sequence[str],
) -> list[Candidate]:
  """All candidates (a name and a text each), the one with the highest mean reward first.

  `sample` answers texts, prefix + prompt; `reward` scores (prompts, answers), and never sees the
  prefix.  Of equal means the earlier candidate wins.
  """
  if not candidates or not prompts:
    raise UserError(
      f"{len(candidates)} prefixes and {len(prompts)} prompts: at least one of each is needed"
    )
  scores = {}
  for name, prefix in candidates.items():
    scores[name] = np.asarray(
      reward(prompts, sample([prefix + prompt for prompt in prompts])), np.float64
    )
  best = max(scores.values(), key=lambda values: values.mean())
  found = [
    Candidate(name, intervals.mean(s), intervals.mean(best - s), tuple(s.tolist()))
    for name, s in scores.items()
  ]
  return sorted(found, key=lambda one: -one.mean.value)


def prefix(
  config: Config, model: str, files: Sequence[str], prompts: str, reward: str, out: Path
) -> str:
  """`select_prefix` for files; writes the best text to `out`, and everything to `out`.json.  Gives
  what to print.

  Samples as the evaluation does: config.preference.response, temperature and stop.
  """
  candidates = {file: subject.prefix_of(file) for file in files}
  asked = [record.prompt for record in sources.load(prompts, "prompt")[: config.limit or None]]
  c = config.preference
  with running.devices(config.mesh) as parts:
    judges = rewards.open_all(reward, config.model)
    policy = subject.open_subject(model, config, parts)

    def sample(texts: Sequence[str]) -> list[str]:
      requests = [[Generate(text, c.response, c.temperature, tuple(c.stop))] for text in texts]
      return [said.completions()[0].text for said in subject.heard(policy, requests)]

    score = lambda prompts, answers: rewards.total(
      judges, rewards.score_texts(judges, prompts, answers)
    ).tolist()
    found = select_prefix(candidates, sample, score, asked)
  about = {
    "model": dict(policy.about),
    "rewards": rewards.manifest(judges),
    "prompts": prompts,
    "seed": config.seed,
  }
  about |= {"response": c.response, "temperature": c.temperature, "stop": list(c.stop)}
  plain = lambda one: one._asdict() | {"mean": one.mean._asdict(), "behind": one.behind._asdict()}
  writers.replace(out, candidates[found[0].name])
  report = about | {"candidates": [plain(one) for one in found]}
  writers.replace(
    out.with_name(f"{out.name}.json"), json.dumps(report, indent=1, ensure_ascii=False) + "\n"
  )
  return text(found, out)


def text(found: Sequence[Candidate], out: Path) -> str:
  """A line for each candidate, and what to do with the best."""
  show = lambda e: f"{e.value:8.3f} ({e.low:.3f} to {e.high:.3f})"
  lines = [f"{one.name:32} {show(one.mean)}  behind {show(one.behind)}" for one in found]
  best = f"{out}: {found[0].name}, by the mean reward of {found[0].mean.n} answers; --models prompted=MODEL#prefix={out}"
  return "\n".join([*lines, best])
