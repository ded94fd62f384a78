"""The head of the page: a verdict in one sentence, a few numbers, and what they do not say."""

from __future__ import annotations

import math
from html import escape
from typing import NamedTuple

from instructjax.intervals import Estimate
from instructjax.runs import TRAINING
from instructjax.runs.report import headline as headlines
from instructjax.runs.report import page
from instructjax.runs.report.files import Run, estimate, inside, number, ordering
from instructjax.runs.report.headline import Change, Headline, Measures
from instructjax.runs.report.names import MODELS, rl_stages, stage_title

POLICIES = ("ptx", "ppo")  # the better one according to the paper comes first

# References of the reward model's accuracy in results.json, as a sentence calls them.
REFERENCES = {
  "chance": "chance",
  "longer": "the longer one wins",
  "vader": "VADER",
  "raters": "two raters agree",
  "ceiling": "noise ceiling",
  "labelers": "two labelers agree",
  "bayes": "best possible",
}


class Fact(NamedTuple):
  """A number beside the headline, with a title above it and small print below it."""

  title: str
  value: str
  small: str


def head(run: Run) -> str:
  """Returns headline, facts and caveats."""
  run_name = f"InstructJAX · run {escape(run.name)}"
  parts = [f'<p class="run">{run_name}</p><h1>{escape(headline(run))}</h1>']
  parts.extend(f"<p><strong>{escape(sentence)}</strong></p>" for sentence in progress(run))
  run_facts = facts(run)
  if len(run_facts) == 1:
    # The headline already holds this number, so only its small print is left to say.
    parts.append(f"<p>{escape(run_facts[0].small.capitalize())}.</p>")
  elif run_facts:
    cells = "".join(_fact_cell(fact) for fact in run_facts)
    parts.append(f'<dl class="facts">{cells}</dl>')
  of_policy = policy_headline(run)
  if of_policy is not None:
    parts.append(_caveat_box("What else is measured", of_policy.findings))
    parts.append(_caveat_box("Not known", of_policy.unknown))
  parts.append(_caveat_box("Read this with the numbers", caveats(run)))
  parts.append(_caveat_box("Left out", run.problems))
  return "".join(parts)


def progress(run: Run) -> list[str]:
  """Returns that a stage of training is not finished, or that a hook has stopped it."""
  stage = run.config.get("stage")
  if stage not in TRAINING:
    return []
  stopped = inside(run.manifest, "stopped", stage)
  if run.left_model:
    if not stopped:
      return []
    return [f"Stopped at step {stopped.get('step')} by {stopped.get('by')}."]
  steps = [step for curve in run.curves.get(stage, {}).values() for step in curve]
  total = run.config.get("iterations") or run.config.get("steps")
  if steps and isinstance(total, int) and max(steps) >= total:
    return ["Not finished: all steps are done, and no model is left yet. Run its command again."]
  of_all = f" of {total:,}" if isinstance(total, int) else ""
  done = f"its last line is of step {max(steps):,}{of_all}" if steps else "it has no step yet"
  return [f"Not finished: {done}. Run its command again to go on."]


def _fact_cell(fact: Fact) -> str:
  title = f"<dt>{escape(fact.title)}</dt>"
  value = f"<dd>{escape(fact.value)}<small>{escape(fact.small)}</small></dd>"
  return f"<div>{title}{value}</div>"


def _caveat_box(title: str, sentences: list[str]) -> str:
  """Returns a list of sentences, in which `words` become code; nothing where there are none."""
  if not sentences:
    return ""
  items = "".join(f"<li>{page.with_code(sentence)}</li>" for sentence in sentences)
  return f'<div class="caveats"><strong>{title}</strong><ul>{items}</ul></div>'


def _wins(run: Run, name: str) -> Estimate | None:
  """Returns the win rate of a model against SFT."""
  return estimate(inside(run.results, "models", name).get("win_rate_vs_sft"))


def policy_headline(run: Run) -> Headline | None:
  """Returns what all measures say of the policy; None where a run has trained none.

  Of two policies it is the one that the paper finds better.
  """
  for name in POLICIES:
    if _wins(run, name):
      return headlines.headline(measures_of_results(run, name))
  stages = rl_stages(run)
  for stage in (*POLICIES, *stages):
    if stage in stages:
      return headlines.headline(measures_of_curves(run, stage))
  return None


def measures_of_results(run: Run, name: str) -> Measures:
  """Returns what the results say of a policy beside SFT."""
  ours = inside(run.results, "models", name)
  sft = inside(run.results, "models", "sft")

  def change(measure: str) -> Change | None:
    before = estimate(sft.get(measure))
    after = estimate(ours.get(measure))
    if before is None or after is None:
      return None
    return headlines.change_between(before, after)

  reward = change("score")
  if headlines.direction(reward) is None and name in run.curves:
    reward = measures_of_curves(run, name).reward or reward
  return Measures(
    MODELS[name],
    wins=_wins(run, name),
    judge=estimate(inside(run.results, "rm").get("gold_pair_accuracy")),
    reward=reward,
    kl=estimate(ours.get("kl")),
    lexicon=change("follows"),
    distinct=change("distinct"),
    empty=change("empty"),
    repeated=change("repeated"),
  )


def measures_of_curves(run: Run, stage: str) -> Measures:
  """Returns what the curves of PPO say: held-out prompts where there are some."""
  metrics = run.curves[stage]
  scores = metrics.get("eval/score") or metrics.get("objective/scores") or {}
  distances = list(metrics.get("objective/kl", {}).values())
  kl = Estimate(distances[-1], math.nan, math.nan, 0) if distances else None
  return Measures(
    stage_title(stage),
    gold=headlines.change_of_curve(list(metrics.get("eval/gold", {}).values())),
    reward=headlines.change_of_curve(list(scores.values())),
    kl=kl,
  )


def headline(run: Run) -> str:
  """Returns the verdict in one sentence.

  It is about the policies where there are any, else about the reward model, else about where the
  curves went.
  """
  of_policy = policy_headline(run)
  if of_policy is not None:
    return of_policy.sentence
  name, measured = ordering(run)
  accuracy = estimate(measured.get("pair_accuracy"))
  if accuracy:
    share = page.with_ends(accuracy)
    chance = ", which may be chance" if accuracy.low <= 0.5 <= accuracy.high else ""
    return f"The {name} orders {share} of held-out pairs as people do{chance}{_beside(run)}"
  changes = [f"{fact.title} {fact.value}" for fact in curve_facts(run)]
  # A headline has room for three stages. A run with nothing but settings has only its name.
  return "; ".join(changes[:3]) or f"Run {run.name}"


def _beside(run: Run) -> str:
  """Returns what the accuracy of the reward model stands beside, in the headline."""
  references = inside(run.results, "rm", "references")
  parts = []
  for name in ("chance", "longer"):
    share = number(references.get(name))
    if share is not None:
      parts.append(f"{REFERENCES[name]} {page.percent(share)}")
  return f"; {', '.join(parts)}" if parts else ""


def facts(run: Run) -> list[Fact]:
  """Returns the few numbers beside the headline; those of the curves where there are no results."""
  results = [*_win_facts(run), *_accuracy_facts(run), *_tax_facts(run)]
  return results or curve_facts(run)


def _win_facts(run: Run) -> list[Fact]:
  win_facts = []
  for name in POLICIES:
    wins = _wins(run, name)
    if wins:
      judged = f"{wins.n:,} prompts, judged by the gold model"
      interval = page.interval(wins, share=True)  # empty for a plain number
      small = f"{interval}, {judged}" if interval else judged
      fact = Fact(f"{MODELS[name]} wins against SFT", page.percent(wins.value), small)
      win_facts.append(fact)
  return win_facts


def _accuracy_facts(run: Run) -> list[Fact]:
  name, measured = ordering(run)
  accuracy = estimate(measured.get("pair_accuracy"))
  if not accuracy:
    return []
  value = page.percent(accuracy.value)
  return [Fact(f"{name.capitalize()}, pairs right", value, accuracy_references(run))]


def accuracy_references(run: Run) -> str:
  """Returns the references of the reward model's accuracy, in percent."""
  references = inside(ordering(run).measured, "references")
  parts = []
  for name, words in REFERENCES.items():
    share = number(references.get(name))
    if share is not None:
      parts.append(f"{words} {100 * share:.1f}")
  return ", ".join(parts)


def _tax_facts(run: Run) -> list[Fact]:
  """Returns what the pretraining mix changes on pretraining text (the "alignment tax")."""
  base = _pretrain_nll(run, "base")
  without_mix = _pretrain_nll(run, "ppo")
  with_mix = _pretrain_nll(run, "ptx")
  if with_mix is None or without_mix is None:
    return []
  small = f"nats a token with the mix ({with_mix:.3f}) less without it ({without_mix:.3f})"
  if base is not None:
    small += f"; base {base:.3f}"
  change = page.minus(with_mix - without_mix, 3)
  return [Fact("Pretraining text, PPO-ptx less PPO", change, small)]


def _pretrain_nll(run: Run, name: str) -> float | None:
  return number(inside(run.results, "models", name).get("pretrain_nll"))


def curve_facts(run: Run) -> list[Fact]:
  """Returns where the main curve of each stage began and ended."""
  candidates = [curve_fact(run, stage) for stage in run.curves]
  return [fact for fact in candidates if fact is not None]


def curve_fact(run: Run, stage: str) -> Fact | None:
  """Returns the means of the first and the last tenth of a stage's score or loss."""
  is_rl = stage in rl_stages(run)  # whose loss says little about how it went
  metric = "objective/scores" if is_rl else "loss"
  values = list(run.curves[stage].get(metric, {}).values())
  if not values:
    return None
  tenth = max(1, len(values) // 10)  # steps
  first = sum(values[:tenth]) / tenth
  last = sum(values[-tenth:]) / tenth
  word = "score" if is_rl else "loss"
  return Fact(
    f"{stage_title(stage)}: {word}",
    f"{page.minus(first)} → {page.minus(last)}",
    f"means of the first and the last {tenth} of {len(values):,} steps",
  )


def caveats(run: Run) -> list[str]:
  """Returns the notes of the results, and what holds for any run that was judged by models."""
  notes = run.results.get("notes")
  sentences = []
  if isinstance(notes, list):  # the file may come from anywhere
    sentences = [str(note) for note in notes]
  if inside(run.results, "models"):
    sentences.append(
      "The judge of the win rates, the gold model, is a reward model too, not a person."
    )
    sentences.append(
      "Intervals are over test prompts. One training run was made: "
      "they do not say how another seed would do."
    )
  return sentences
