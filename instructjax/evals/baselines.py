"""The prompted baseline: the few-shot prefix whose answers a reward model scores highest.

  instructjax baseline prefix --model=BASE --candidates=a.txt,b.txt --prompts=valid.jsonl
  --reward=runs/reward --out=best.txt

In the paper (Ouyang et al. 2022, section 3.5) two people wrote two prefixes each, and the one that
scored highest on validation prompts was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from instructjax import intervals, rewards
from instructjax.data.records import sources
from instructjax.errors import UserError, naming
from instructjax.evals import subject
from instructjax.evals.tasks import Generate
from instructjax.intervals import Estimate
from instructjax.runs import writers
from instructjax.settings import EvalSettings
from instructjax.stages import running
from instructjax.system import jsons


class Candidate(NamedTuple):
  """A prefix, and what the answers after it are worth.

  mean     the mean reward, with a 95 % interval over prompts
  behind   how far it lies behind the best prefix on the same prompts; 0 for the best one
  scores   the reward on each prompt
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
  """Returns all candidates, the one with the highest mean reward first; of equals the earlier one.

  Args:
    candidates: {name: text of the prefix}.
    sample: answers texts, each a prefix and a prompt.
    reward: scores (prompts, answers); it never sees a prefix.
    prompts: the prompts.

  Raises:
    UserError: if there is no candidate or no prompt.
  """
  if not candidates or not prompts:
    raise UserError(
      f"{len(candidates)} prefixes and {len(prompts)} prompts: at least one of each is needed"
    )
  scores: dict[str, np.ndarray] = {}
  for name, text in candidates.items():
    answers = sample([text + prompt for prompt in prompts])
    # The prefix is not scored: the question is how well the prompt was answered.
    rewards_of_answers = reward(prompts, answers)
    scores[name] = np.asarray(rewards_of_answers, np.float64)
  best = max(scores.values(), key=np.mean)
  ranked = []
  for name, values in scores.items():
    mean = intervals.mean(values)
    # The distance is paired by prompt, and has a much narrower interval than the two means.
    behind = intervals.mean_difference(best, values)
    candidate = Candidate(name, mean, behind, tuple(values.tolist()))
    ranked.append(candidate)
  # The sort is stable, so that the earlier of two equal candidates stays first.
  return sorted(ranked, key=lambda candidate: -candidate.mean.value)


def prefix(
  config: EvalSettings,
  model: str,
  files: Sequence[str],
  prompts: str,
  reward: str,
  out: Path,
) -> str:
  """Selects one of several prefix files and returns what to print.

  The text of the best one goes to `out`, everything else to `out`.json.

  Args:
    config: the settings; answers are sampled under config.preference.
    model: the source of the base model.
    files: the prefix files.
    prompts: a source of validation prompts.
    reward: the reward, see docs/rewards.md.
    out: the file for the best prefix.

  Raises:
    UserError: if a file, the model or the reward cannot be opened.
  """
  # Every file is read first: opening the model and the rewards may take minutes.
  candidates = {file: subject.prefix_of(file) for file in files}
  records = sources.load(prompts, "prompt")[: config.limit or None]
  with naming("--prompts", prompts):
    fields = rewards.fields_by_text(records)
  sampling = config.preference
  with running.devices(config.mesh) as parts:
    opened_rewards = rewards.open_all(reward, config.model)
    policy = subject.open_subject(model, config, parts)

    def sample(texts: Sequence[str]) -> list[str]:
      requests = []
      for text in texts:
        request = Generate(text, sampling.response, sampling.temperature, sampling.stop)
        requests.append([request])
      replies = subject.ask(policy, requests)
      return [reply.completions()[0].text for reply in replies]

    def score(texts: Sequence[str], answers: Sequence[str]) -> list[float]:
      asked = [fields[text] for text in texts]
      scores = rewards.score_texts(opened_rewards, texts, answers, asked)
      # The sum of the rewards with their weights, as in PPO.
      total = rewards.total(opened_rewards, scores)
      return total.tolist()

    prompt_texts = [record.prompt for record in records]
    ranked = select_prefix(candidates, sample, score, prompt_texts)
  report = {
    "model": dict(policy.about),
    "rewards": rewards.manifest(opened_rewards),
    "prompts": prompts,
    "seed": config.seed,
    "response": sampling.response,
    "temperature": sampling.temperature,
    "stop": list(sampling.stop),
    "candidates": [_plain(candidate) for candidate in ranked],
  }
  # The text as it is: whatever stands at its end precedes every prompt.
  writers.replace(out, candidates[ranked[0].name])
  report_text = jsons.text_with_nulls(report, indent=1)
  report_path = out.with_name(f"{out.name}.json")
  writers.replace(report_path, f"{report_text}\n")
  return summary(ranked, out)


def _plain(candidate: Candidate) -> dict[str, Any]:
  """Returns a candidate as JSON has it."""
  fields = candidate._asdict()
  for name in ("mean", "behind"):
    fields[name] = fields[name]._asdict()  # with the names of an estimate
  return fields


def summary(ranked: Sequence[Candidate], out: Path) -> str:
  """Returns a line for each candidate, and one that says how to use the best, in the file `out`."""
  lines = []
  for candidate in ranked:
    mean, behind = _interval(candidate.mean), _interval(candidate.behind)
    lines.append(f"{candidate.name:32} {mean}  behind {behind}")
  best = ranked[0]
  lines.append(
    f"{out}: {best.name}, by the mean reward of {best.mean.n} answers; --models "
    f"prompted=MODEL#prefix={out}"
  )
  return "\n".join(lines)


def _interval(estimate: Estimate) -> str:
  return f"{estimate.value:8.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
