"""The sections with curves of training: supervised stages, PPO, and all other metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from instructjax.runs.report import page, ppo_metrics
from instructjax.runs.report.figures import Series, plot, smooth, thinned
from instructjax.runs.report.files import Curve, Run, inside, number
from instructjax.runs.report.names import rl_stages, stage_look, stage_title
from instructjax.runs.report.page import Section

# Curves with more steps than this are drawn faintly, with their running mean.
LONG_RL = 60
LONG_SUPERVISED = 20

# Last parts of the names of metrics that the section about supervised stages shows.
SUPERVISED_METRICS = ("loss", "nll", "accuracy", "pretrain_nll", "log_loss")
# Of those that are the ends of intervals, which are drawn as bars of the metric itself.
ENDS = ("_low", "_high")

# (metric, title, unit) of the figures about PPO.
RL_FIGURES = (
  ("objective/scores", "Score of the reward model", "score"),
  ("eval/score", "Score on held-out prompts", "score"),
  ("eval/gold", "Score of the gold model", "score"),
  ("objective/kl", "KL to the starting point", "nats a response"),
  ("response/len_mean", "Length of responses", "tokens"),
  ("response/eos_frac", "Responses that ended by themselves", "share"),
  ("objective/rlhf_reward", "Score less the KL penalty", "reward"),
)

# (metric, label, look) of the gradients that PPO-ptx adds up.
GRADIENT_NORMS = (
  ("grad/norm_ppo", "PPO", "ppo"),
  ("grad/norm_ptx", "pretraining mix", "ptx"),
)

# The metrics of reinforcement learning that a section of their own shows.
FEATURED_METRICS = {
  *(metric for metric, _, _ in RL_FIGURES),
  *(metric for metric, _, _ in GRADIENT_NORMS),
  "eval/pretrain_nll",
  "loss/ptx",
}

DISTANCE_LEAD = (
  "A policy may please its reward model more and more without getting better: "
  "then the score rises with the distance from the start and the gold score does not follow. "
  "A point is an iteration, or the mean of a few in a long run."
)


# --- curves ---


def curve_series(
  label: str,
  look: str,
  curve: Curve,
  faint: bool = False,
) -> Series:
  """Returns a curve over its steps."""
  return Series(label, look, list(curve), list(curve.values()), faint=faint)


def with_running_mean(
  label: str,
  look: str,
  curve: Curve,
  long: int,
) -> list[Series]:
  """Returns the curve; where it has more than `long` steps, faintly and with its running mean."""
  if len(curve) <= long:
    return [curve_series(label, look, curve)]
  means = smooth(list(curve.values()))
  mean_curve = dict(zip(curve, means, strict=True))
  return [
    curve_series(label, look, curve, faint=True),
    curve_series(label, look, mean_curve),
  ]


def overlay(
  run: Run,
  stages: Sequence[str],
  metric: str,
  title: str,
  unit: str,
  **options: Any,
) -> str:
  """Returns one metric over the iterations of several stages; `options` are those of `plot`."""
  # Stages measure different things: only PPO-ptx has a loss on pretraining text.
  measured = [stage for stage in stages if metric in run.curves[stage]]
  if not measured:
    return ""
  series = []
  for stage in measured:
    curve = run.curves[stage][metric]
    look = stage_look(run, stage)
    series.extend(with_running_mean(stage_title(stage), look, curve, LONG_RL))
  advice = _advice(run, measured, metric)
  if len(measured) == 1 < len(stages):  # without a legend the title must say whose curve it is
    title = f"{title} ({stage_title(measured[0])})"
  return plot(title, series, "iteration", unit, advice=advice, **options)


def _advice(run: Run, stages: Sequence[str], metric: str) -> str:
  """Returns what is not healthy about a metric of PPO, stage by stage where there are several."""
  sentences = []
  for stage in stages:
    values = list(run.curves[stage].get(metric, {}).values())
    advice = ppo_metrics.advice(metric, values, stage)
    if advice:
      sentences.append(f"{stage_title(stage)}: {advice}" if len(stages) > 1 else advice)
  return " ".join(sentences)


def _unhealthy(run: Run) -> list[str]:
  """Returns the metrics of PPO that need advice and have no figure of their own, in order."""
  stages = rl_stages(run)
  return [
    metric.name
    for metric in ppo_metrics.METRICS
    if metric.name not in FEATURED_METRICS and _advice(run, stages, metric.name)
  ]


def _smoothing_lead(figures: Sequence[str], unit: str) -> str:
  """Returns the sentence that explains faint curves, where a figure has one."""
  if not any("faint" in figure for figure in figures):
    return ""
  return f"Thin: every {unit}. Thick: running mean."


def _last_part(metric: str) -> str:
  return metric.rpartition("/")[2]


# --- sections ---


def supervised_stages(run: Run) -> Section:
  """Returns loss and accuracy of every stage that is not reinforcement learning."""
  figures = []
  for stage, metrics in run.curves.items():
    if stage in rl_stages(run):
      continue
    names = [metric for metric in metrics if _last_part(metric) in SUPERVISED_METRICS]
    names.sort(key=lambda metric: (metric != "loss", metric))  # the loss comes first
    figures.extend(_supervised_figure(run, stage, metric) for metric in names)
  lead = _smoothing_lead(figures, "step")
  return page.section("losses", "Supervised stages", lead, page.grid(figures))


def _supervised_figure(run: Run, stage: str, metric: str) -> str:
  """Returns one metric of a supervised stage with its unit and, for a ranking, its chance level."""
  metrics = run.curves[stage]
  is_share = _last_part(metric) == "accuracy"
  is_log_loss = _last_part(metric) == "log_loss"
  is_ranking_loss = metric == "loss" and "accuracy" in metrics
  level = None
  unit = "nats a token"
  if is_share:
    level = (0.5, "chance")
    unit = "share of pairs"
  elif is_log_loss or (is_ranking_loss and _is_equation_1(run)):
    level = (math.log(2), "chance")  # -log σ(0), the loss of a model that tells nothing
    unit = "nats a pair"
  elif is_ranking_loss:
    unit = "loss"
  look = stage_look(run, stage)
  series = with_running_mean("loss", look, metrics[metric], LONG_SUPERVISED)
  ends = [metrics.get(f"{metric}_{end}", {}) for end in ("low", "high")]
  if len(series) == 1 and all(curve.keys() == metrics[metric].keys() for curve in ends):
    low, high = (list(curve.values()) for curve in ends)
    series = [series[0]._replace(low=low, high=high)]
  title = f"{stage_title(stage)}: {metric}"
  return plot(title, series, "step", unit, percent=(False, is_share), level=level)


def _is_equation_1(run: Run) -> bool:
  """Returns whether a reward model was trained on Eq. 1 alone, whose level of chance is log 2."""
  config = run.config
  changes = (config.get("loss", "pairs") != "pairs", config.get("margin"), config.get("centering"))
  return not any(changes)


def ppo_curves(run: Run) -> Section:
  """Returns score, KL, gold score and length over the iterations of PPO."""
  stages = rl_stages(run)
  figures = []
  for metric, title, unit in RL_FIGURES:
    percent = (False, unit == "share")
    figure = overlay(run, stages, metric, title, unit, percent=percent)
    if figure:
      figures.append(figure)
  # What is not healthy must not lie folded among all the others.
  figures += [overlay(run, stages, metric, metric, "") for metric in _unhealthy(run)]
  lead = _smoothing_lead(figures, "iteration")
  # PPO-ptx is PPO too, and a quickstart has both.
  method = stage_title("grpo" if stages == ["grpo"] else "ppo")
  return page.section("ppo", f"{method}, iteration by iteration", lead, page.grid(figures))


def overoptimisation(run: Run) -> Section:
  """Returns both scores against the distance from the start, on the same axes for every stage.

  The distance is √KL, as in Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization".
  """
  paths = {}
  for stage in rl_stages(run):
    series = scores_by_distance(run, stage)
    if series:
      paths[stage] = series
  xs: list[float] = []
  ys: list[float] = []
  for path in paths.values():
    for series in path:
      xs.extend(series.x)
      ys.extend(series.y)
  figures = [
    plot(stage_title(stage), path, "√KL, √nats", "score", also=(xs, ys))
    for stage, path in paths.items()
  ]
  return page.section("distance", "Scores against distance", DISTANCE_LEAD, page.grid(figures))


def scores_by_distance(run: Run, stage: str) -> list[Series]:
  """Returns the reward model's and the gold model's scores over √KL."""
  metrics = run.curves[stage]
  kl = metrics.get("objective/kl", {})
  clouds = []
  for metric, label, look in (
    ("objective/scores", "reward model", stage_look(run, stage)),
    ("eval/gold", "gold model", "gold"),
  ):
    points = []
    for step, score in metrics.get(metric, {}).items():
      if step in kl:
        # An estimate of the KL from samples may be below 0.
        distance = math.sqrt(max(kl[step], 0.0))
        points.append((distance, score))
    if not points:
      continue
    points.sort()
    cloud = Series(
      label,
      look,
      [distance for distance, _ in points],
      [score for _, score in points],
      line=len(points) <= 30,  # the line of a longer run would be a scribble
    )
    clouds.append(thinned(cloud))
  return clouds


def alignment_tax(run: Run) -> Section:
  """Returns what RL costs on pretraining text, with and without the pretraining mix."""
  stages = rl_stages(run)
  base = number(inside(run.results, "models", "base").get("pretrain_nll"))
  level = (base, "base model") if base is not None else None
  unit = "nats a token"
  # The loss that is trained on may be a sum over the tokens of a row.
  is_sum = inside(run.config, "ppo").get("ptx_normalise") == "sequence_sum"
  trained_unit = "nats a row" if is_sum else unit
  figures = [
    overlay(run, stages, "eval/pretrain_nll", "Held-out pretraining text", unit, level=level),
    overlay(run, stages, "loss/ptx", "Pretraining loss in training", trained_unit),
    _gradient_norms(run, stages),
  ]
  body = page.grid([figure for figure in figures if figure])
  return page.section("tax", "Pretraining text, with and without the mix", "", body)


def _gradient_norms(run: Run, stages: Sequence[str]) -> str:
  """Returns the norms of the two gradients of PPO-ptx, from 0 on."""
  series = []
  for stage in stages:
    metrics = run.curves[stage]
    if "grad/norm_ptx" not in metrics:  # a stage without the mix has nothing to compare
      continue
    for metric, label, look in GRADIENT_NORMS:
      if metric in metrics:
        series.append(curve_series(label, look, metrics[metric]))
  if not series:
    return ""
  return plot("Gradient norms in PPO-ptx", series, "iteration", "norm", also=((), (0,)))


def other_metrics(run: Run) -> Section:
  """Returns every metric that no other section shows, folded."""
  stages = rl_stages(run)
  rl_metrics = {metric for stage in stages for metric in run.curves[stage]}
  remaining = sorted(rl_metrics - FEATURED_METRICS - {*_unhealthy(run)})
  figures = [overlay(run, stages, metric, metric, "") for metric in remaining]
  for stage, metrics in run.curves.items():
    if stage in stages:
      continue
    for metric, curve in metrics.items():
      if _last_part(metric) not in SUPERVISED_METRICS and not metric.endswith(ENDS):
        series = curve_series(metric, stage_look(run, stage), curve)
        figures.append(plot(f"{stage_title(stage)}: {metric}", [series], "step", ""))
  body = ""
  if figures:
    body = page.details(f"{len(figures)} more curves", page.grid(figures))
  return page.section("curves", "All other metrics", "", body)
