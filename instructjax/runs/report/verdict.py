"""The head of the page: one sentence with the number that matters, a few others, and what they do
not say.
"""

from __future__ import annotations

import math
import re
from html import escape

from instructjax.intervals import Estimate
from instructjax.runs.report import page
from instructjax.runs.report.files import Curve, Run, estimate, inside, number
from instructjax.runs.report.sections import MODELS, named, rl_stages


def head(run: Run) -> str:
  """Headline, facts, caveats."""
  parts = [
    f'<p class="run">InstructJAX · run {escape(run.name)}</p><h1>{escape(headline(run))}</h1>'
  ]
  found = facts(run)
  cells = [
    f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>"
    for a, b, c in found
  ]
  if len(cells) == 1:
    parts.append(f"<p>{escape(found[0][2].capitalize())}.</p>")
  elif cells:
    parts.append(f'<dl class="facts">{"".join(cells)}</dl>')
  for title, found in (("Read this with the numbers", caveats(run)), ("Left out", run.problems)):
    if found:
      marked = [re.sub("`([^`]+)`", r"<code>\1</code>", escape(line)) for line in found]
      items = "".join(f"<li>{line}</li>" for line in marked)
      parts.append(f'<div class="caveats"><strong>{title}</strong><ul>{items}</ul></div>')
  return "".join(parts)


def headline(run: Run) -> str:
  """The verdict in one sentence: on the policies, else on the reward model, else on the curves."""
  for name in ("ptx", "ppo"):
    found = estimate(inside(run.results, "models", name).get("win_rate_vs_sft"))
    if found:
      return against_sft(MODELS[name], found)
  accuracy = estimate(inside(run.results, "rm").get("pair_accuracy"))
  if accuracy:
    return f"The reward model orders {page.with_ends(accuracy)} of held-out pairs as people do"
  moved = [fact for stage in run.curves if (fact := moves(run, stage))]
  return "; ".join(f"{title} {value}" for title, value, _ in moved[:3]) or f"Run {run.name}"


def against_sft(name: str, found: Estimate) -> str:
  """Better, worse or not told apart, as the interval says."""
  share = page.percent(found.value)
  if not math.isfinite(found.low + found.high):
    return f"{name} wins {share} of test prompts against SFT (no interval is given)"
  ends = f"(95\u00a0% interval {page.interval(found, share=True)})"
  if found.low > 0.5:
    return f"{name} beats SFT: it wins {share} of test prompts {ends}"
  if found.high < 0.5:
    return f"{name} is worse than SFT: it wins {share} of test prompts {ends}"
  return f"{name} is not told apart from SFT: it wins {share} of test prompts {ends}"


def facts(run: Run) -> list[tuple[str, str, str]]:
  """(title, value, small print) of the few numbers beside the headline."""
  models = inside(run.results, "models")
  found = []
  for name in ("ptx", "ppo"):
    wins = estimate(inside(models, name).get("win_rate_vs_sft"))
    if wins:
      small = f"{page.interval(wins, share=True)}, {wins.n:,} prompts, judged by the gold model"
      found.append(
        (f"{MODELS[name]} wins against SFT", page.percent(wins.value), small.removeprefix(", "))
      )
  accuracy = estimate(inside(run.results, "rm").get("pair_accuracy"))
  if accuracy:
    found.append(("Reward model, pairs right", page.percent(accuracy.value), beside(run)))
  nll = {name: number(inside(models, name).get("pretrain_nll")) for name in MODELS}
  if nll["ppo"] is not None and nll["ptx"] is not None:
    change = nll["ptx"] - nll["ppo"]
    small = f"nats a token with the mix ({nll['ptx']:.3f}) less without it ({nll['ppo']:.3f})"
    small += f"; base {nll['base']:.3f}" if nll["base"] is not None else ""
    found.append(("Pretraining text, PPO-ptx less PPO", page.minus(change, 3), small))
  return found or [fact for stage in run.curves if (fact := moves(run, stage))]


def beside(run: Run) -> str:
  """The references of the reward model's accuracy."""
  refs = inside(run.results, "rm", "references")
  words = {
    "chance": "chance",
    "vader": "VADER",
    "raters": "two raters agree",
    "ceiling": "noise ceiling",
  }
  found = [(word, number(refs.get(name))) for name, word in words.items()]
  return ", ".join(f"{word} {100 * value:.1f}" for word, value in found if value is not None)


def moves(run: Run, stage: str) -> tuple[str, str, str] | None:
  """Where the main curve of a stage began and ended: means of the first and the last tenth of its
  steps.
  """
  metric = "objective/scores" if stage in rl_stages(run) else "loss"
  curve: Curve = run.curves[stage].get(metric, {})
  if not curve:
    return None
  values = list(curve.values())
  tenth = max(1, len(values) // 10)
  first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
  word = "score" if metric == "objective/scores" else "loss"
  small = f"means of the first and the last {tenth} of {len(values):,} steps"
  return f"{named(stage)}: {word}", f"{page.minus(first)} → {page.minus(last)}", small


def caveats(run: Run) -> list[str]:
  """The notes of the results, and what holds for any run that was judged by models."""
  notes = run.results.get("notes")
  found = [str(note) for note in notes] if isinstance(notes, list) else []
  if inside(run.results, "models"):
    found.append("The judge of the win rates, the gold model, is a reward model too, not a person.")
    found.append(
      "Intervals are over test prompts. One training run was made: they do not say how another "
      "seed would do."
    )
  return found
