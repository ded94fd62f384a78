"""The sections of the page, top to bottom.  Each takes the run and gives (anchor, title, HTML); no
data, no HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from instructjax.intervals import Estimate
from instructjax.runs.report import page
from instructjax.runs.report.figures import Row, Series, bars, forest, plot, smooth, thinned
from instructjax.runs.report.files import Curve, Run, estimate, inside, number

MODELS = {"base": "base", "sft": "SFT", "ppo": "PPO", "ptx": "PPO-ptx"}
STAGES = {
  "sft": "SFT",
  "rl_init": "Start of RL",
  "reward": "Reward model",
  "gold": "Gold model",
  "pretrain": "Pretraining",
}
LOOKS = {"reward": "rm", "rl_init": "base", "pretrain": "base"} | {
  name: name for name in (*MODELS, "gold")
}
SPARE = ("sft", "ppo", "ptx", "rm", "gold", "base")  # looks of stages that have none
SLICES = {"amazon": "amazon (new domain)"}
SAMPLES = 24  # of which this many are open at once:
OPEN = 6
RL_FIGURES = (
  ("objective/scores", "Score of the reward model", "score"),
  ("eval/gold", "Score of the gold model", "score"),
  ("objective/kl", "KL to the starting point", "nats a response"),
  ("response/len_mean", "Length of responses", "tokens"),
  ("response/eos_frac", "Responses that ended by themselves", "share"),
  ("objective/rlhf_reward", "Score less the KL penalty", "reward"),
)
COLUMNS = (
  ("score", "RM score ↑", False, 2),
  ("gold", "gold score ↑", False, 2),
  ("follows", "follows ↑", True, 1),
  ("win_rate_vs_sft", "wins against SFT ↑", True, 1),
  ("kl", "KL, nats", False, 1),
  ("length", "length, tokens", False, 1),
  ("eos_rate", "ended", True, 1),
  ("pretrain_nll", "text, nats/token ↓", False, 3),
)
TERMS = (
  "RM score: of the reward model that PPO was trained on. Gold score: of a second reward model, "
  "fitted on other texts "
  "and the ratings of other people, never trained on. Follows: the sentiment lexicon finds the "
  "tone that was asked "
  "for. Wins against SFT: share of prompts with the higher gold score, ties half. KL: to the model "
  "that PPO started "
  "from, a response. Ended: the response ended before its limit. Text: loss on held-out "
  "pretraining text (NYT "
  "editorials in the quickstart). Small print: 95 % bootstrap intervals over prompts, over texts "
  "in the last column."
)


def look(run: Run, stage: str) -> str:
  """The colour of a stage."""
  others = [name for name in run.curves if name not in LOOKS]
  return LOOKS.get(stage) or SPARE[others.index(stage) % len(SPARE)]


def named(stage: str) -> str:
  return STAGES.get(stage) or MODELS.get(stage, stage)


def rl_stages(run: Run) -> list[str]:
  return [stage for stage, metrics in run.curves.items() if "objective/scores" in metrics]


def series(label: str, kind: str, curve: Curve, faint: bool = False) -> Series:
  return Series(label, kind, list(curve), list(curve.values()), faint=faint)


def smoothed(label: str, kind: str, curve: Curve, above: int) -> list[Series]:
  """The curve; where it has more than `above` steps, faint, and its running mean."""
  if len(curve) <= above:
    return [series(label, kind, curve)]
  mean = dict(zip(curve, smooth(list(curve.values())), strict=True))
  return [series(label, kind, curve, faint=True), series(label, kind, mean)]


def overlay(
  run: Run, stages: Sequence[str], metric: str, title: str, unit: str, **more: Any
) -> str:
  """One metric over the steps of several stages."""
  with_it = [s for s in stages if metric in run.curves[s]]
  found = [
    part for s in with_it for part in smoothed(named(s), look(run, s), run.curves[s][metric], 60)
  ]
  title += f" ({named(with_it[0])})" if len(with_it) == 1 < len(stages) else ""
  return plot(title, found, "iteration", unit, **more) if found else ""


# --- results ---


def results(run: Run) -> tuple[str, str, str]:
  """The table of models and measures."""
  models = inside(run.results, "models")
  names = [*(m for m in MODELS if m in models), *(m for m in models if m not in MODELS)]
  rows = []
  for name in names:
    cells = [escape(MODELS.get(name, name))]
    for key, _, share, decimals in COLUMNS:
      found = (
        None
        if (name, key) == ("sft", "win_rate_vs_sft")
        else estimate(inside(models, name).get(key))
      )
      cells.append(page.cell(found, share, decimals))
    rows.append(cells)
  if not rows:
    return page.section("results", "Results", "")
  counts = [
    found.n for name in names if (found := estimate(inside(models, name).get("win_rate_vs_sft")))
  ]
  lead = (
    f"On {max(counts):,} prompts that no training saw, one sampled response each."
    if any(counts)
    else ""
  )
  body = (
    page.table(["", *(title for _, title, _, _ in COLUMNS)], rows) + f'<p class="terms">{TERMS}</p>'
  )
  return page.section("results", "Results", lead, body)


def slices(run: Run) -> tuple[str, str, str]:
  """Win rate against SFT by slice, a forest plot a comparison."""
  models = inside(run.results, "models")
  shown = [name for name in ("ppo", "ptx") if inside(models, name, "win_rate_by_slice")]
  parts = list(
    dict.fromkeys(part for name in shown for part in inside(models, name, "win_rate_by_slice"))
  )
  found = lambda name, part: estimate(inside(models, name, "win_rate_by_slice").get(part))
  rows = [
    Row(SLICES.get(part, part), marks([(name, found(name, part)) for name in shown]))
    for part in parts
  ]
  rows = [row for row in rows if row.marks]
  if not rows:
    return page.section("slices", "Win rate by slice", "")
  whole = marks([(name, estimate(inside(models, name).get("win_rate_vs_sft"))) for name in shown])
  rows = [Row("all prompts", whole), *rows] if whole else rows
  legend = [(name, MODELS[name]) for name in shown]
  body = forest(
    "Prompts won against SFT", rows, "share of prompts, gold score", reference=0.5, legend=legend
  )
  lead = "Dots with 95 % intervals; at the dashed line, 50 %, a model does as well as SFT."
  return page.section("slices", "Win rate by slice", lead, page.grid([body]))


def marks(found: Sequence[tuple[str, Estimate | None]]) -> list[tuple[str, float, float, float]]:
  return [(kind, e.value, e.low, e.high) for kind, e in found if e is not None]


# --- the reward model ---


def ranking(run: Run) -> tuple[str, str, str]:
  """Pair accuracy beside its references, and calibration."""
  rm = inside(run.results, "rm")
  refs = inside(rm, "references")
  chance = number(refs.get("chance"))
  rows = [("reward model", "rm", rm.get("pair_accuracy"))]
  rows += [(SLICES.get(name, name), "rm", value) for name, value in inside(rm, "by_domain").items()]
  rows += [("gold model", "gold", rm.get("gold_pair_accuracy"))]
  labels = {"vader": "VADER lexicon", "raters": "rater and rater", "ceiling": "noise ceiling"}
  rows += [
    (labels.get(name, name), "base", value) for name, value in refs.items() if name != "chance"
  ]
  shown = [Row(label, marks([(kind, estimate(value))])) for label, kind, value in rows]
  shown = [row for row in shown if row.marks]
  lines = [
    at for name, value in refs.items() if name != "chance" and (at := number(value)) is not None
  ]
  figures = []
  if shown:
    note = (
      "Dashed: chance. Dotted: the references in grey. Rater and rater: two raters of the same "
      "texts. Noise ceiling: "
      "one half of the raters against the other."
    )
    figures.append(
      forest(
        "Pairs ordered as people do",
        shown,
        "share of pairs",
        reference=chance or 0.5,
        lines=lines,
        note=note,
      )
    )
  figures.append(calibration(rm.get("calibration")))
  lead = "On comparisons of held-out texts, with templates that no training saw. Bars are 95 % intervals."
  return page.section("ranking", "Reward model", lead, page.grid([f for f in figures if f]))


def calibration(bins: Any) -> str:
  """How often the preferred text is the better one, against the probability that the model gives to
  it.
  """
  bins = bins if isinstance(bins, list) else []
  numbers = [
    tuple(number(inside({"bin": b}, "bin").get(key)) for key in ("p", "correct", "n")) for b in bins
  ]
  points = [(p, c, n) for p, c, n in numbers if p is not None and c is not None and n]
  if not points:
    return ""
  ends = [wilson(c, n) for _, c, n in points]
  found = Series(
    "pairs",
    "rm",
    [p for p, _, _ in points],
    [c for _, c, _ in points],
    low=[low for low, _ in ends],
    high=[high for _, high in ends],
  )
  note = f"{sum(n for _, _, n in points):,.0f} pairs, taken as independent for the bars; on the dashed line p is right."
  return plot(
    "Calibration",
    [found],
    "probability given to the preferred text",
    "share right",
    percent=(True, True),
    also=((0.5, 1.0), (0.5, 1.0)),
    diagonal=True,
    note=note,
  )


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
  """Wilson's 95 % interval of a share of n."""
  middle, half = (
    share + z * z / (2 * n),
    z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)),
  )
  return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


# --- curves ---


def supervised(run: Run) -> tuple[str, str, str]:
  """Loss and accuracy of every stage that is not reinforcement learning."""
  figures = []
  for stage, metrics in run.curves.items():
    if stage in rl_stages(run):
      continue
    ranks = "accuracy" in metrics
    for metric in sorted(metrics, key=lambda name: (name != "loss", name)):
      kind = metric.rpartition("/")[2]
      if kind not in ("loss", "nll", "accuracy", "pretrain_nll"):
        continue
      share = kind == "accuracy"
      level = (
        (0.5, "chance")
        if share
        else (math.log(2), "chance")
        if ranks and metric == "loss"
        else None
      )
      unit = (
        "share of pairs"
        if share
        else "nats a pair"
        if ranks and metric == "loss"
        else "nats a token"
      )
      title = f"{named(stage)}: {metric}"
      figures.append(steady(title, look(run, stage), metrics[metric], unit, level, share))
  lead = (
    "Thin: every step. Thick: running mean." if any("faint" in figure for figure in figures) else ""
  )
  return page.section("losses", "Supervised stages", lead, page.grid(figures))


def steady(
  title: str, kind: str, curve: Curve, unit: str, level: tuple[float, str] | None, share: bool
) -> str:
  """A noisy curve and its running mean."""
  return plot(
    title, smoothed("loss", kind, curve, 20), "step", unit, percent=(False, share), level=level
  )


def reinforced(run: Run) -> tuple[str, str, str]:
  """Score, KL, gold score and length over the iterations of PPO."""
  stages = rl_stages(run)
  figures = [
    overlay(run, stages, metric, title, unit, percent=(False, unit == "share"))
    for metric, title, unit in RL_FIGURES
  ]
  lead = (
    "Thin: every iteration. Thick: running mean."
    if any("faint" in figure for figure in figures)
    else ""
  )
  return page.section(
    "ppo", "PPO, iteration by iteration", lead, page.grid([f for f in figures if f])
  )


def overoptimised(run: Run) -> tuple[str, str, str]:
  """Both scores against the distance from the start, sqrt(KL), on the same axes for every stage."""
  paths = {stage: against_kl(run, stage) for stage in rl_stages(run)}
  paths = {stage: found for stage, found in paths.items() if found}
  xs = [v for found in paths.values() for s in found for v in s.x]
  ys = [v for found in paths.values() for s in found for v in s.y]
  figures = [
    plot(named(stage), found, "√KL, √nats", "score", also=(xs, ys))
    for stage, found in paths.items()
  ]
  lead = (
    "A policy may please its reward model more and more without getting better: then the score "
    "rises with the distance "
    "from the start and the gold score does not follow. A point is an iteration, or the mean of a "
    "few in a long run."
  )
  return page.section("distance", "Scores against distance", lead, page.grid(figures))


def against_kl(run: Run, stage: str) -> list[Series]:
  metrics = run.curves[stage]
  kl = metrics.get("objective/kl", {})
  found = []
  for metric, label, kind in (
    ("objective/scores", "reward model", look(run, stage)),
    ("eval/gold", "gold model", "gold"),
  ):
    points = sorted(
      (math.sqrt(max(kl[at], 0.0)), value)
      for at, value in metrics.get(metric, {}).items()
      if at in kl
    )
    if points:
      cloud = Series(
        label, kind, [x for x, _ in points], [y for _, y in points], line=len(points) <= 30
      )
      found.append(thinned(cloud))
  return found


def tax(run: Run) -> tuple[str, str, str]:
  """What RL costs on pretraining text, with and without the pretraining mix."""
  stages = rl_stages(run)
  base = number(inside(run.results, "models", "base").get("pretrain_nll"))
  level = (base, "base model") if base is not None else None
  figures = [
    overlay(
      run, stages, "eval/pretrain_nll", "Held-out pretraining text", "nats a token", level=level
    )
  ]
  figures.append(overlay(run, stages, "loss/ptx", "Pretraining loss in training", "nats a token"))
  norms = [
    series(label, kind, run.curves[stage][metric])
    for stage in stages
    if "grad/norm_ptx" in run.curves[stage]
    for metric, label, kind in (
      ("grad/norm_ppo", "PPO", "ppo"),
      ("grad/norm_ptx", "pretraining mix", "ptx"),
    )
    if metric in run.curves[stage]
  ]
  if norms:
    figures.append(plot("Gradient norms in PPO-ptx", norms, "iteration", "norm", also=((), (0,))))
  return page.section(
    "tax", "Pretraining text, with and without the mix", "", page.grid([f for f in figures if f])
  )


def other(run: Run) -> tuple[str, str, str]:
  """Every metric that no section above draws, folded."""
  drawn = {metric for metric, _, _ in RL_FIGURES} | {
    "eval/pretrain_nll",
    "loss/ptx",
    "grad/norm_ppo",
    "grad/norm_ptx",
  }
  stages = rl_stages(run)
  rest = sorted({metric for stage in stages for metric in run.curves[stage]} - drawn)
  figures = [overlay(run, stages, metric, metric, "") for metric in rest]
  for stage, metrics in run.curves.items():
    if stage not in stages:
      left = [
        m
        for m in metrics
        if m.rpartition("/")[2] not in ("loss", "nll", "accuracy", "pretrain_nll")
      ]
      figures += [
        plot(f"{named(stage)}: {m}", [series(m, look(run, stage), metrics[m])], "step", "")
        for m in left
      ]
  body = (
    f"<details><summary>{len(figures)} more curves</summary>{page.grid(figures)}</details>"
    if figures
    else ""
  )
  return page.section("curves", "All other metrics", "", body)


# --- samples and cost ---


def samples(run: Run) -> tuple[str, str, str]:
  """The first records of samples.jsonl, as they come."""
  cards = [sample(record) for record in run.samples[:SAMPLES]]
  if not cards:
    return page.section("samples", "Samples", "")
  more = cards[OPEN:]
  body = "".join(cards[:OPEN])
  body += f"<details><summary>{len(more)} more</summary>{''.join(more)}</details>" if more else ""
  lead = f"The first {len(cards)} of {len(run.samples):,} test prompts, not chosen."
  return page.section("samples", "Samples, side by side", lead, body)


def sample(record: dict[str, Any]) -> str:
  """A prompt and the response of each model with its scores."""
  about = " · ".join(str(record[key]) for key in ("domain", "use_case") if record.get(key))
  parts = []
  for name, response in inside(record, "responses").items():
    scores = [
      (word, number(inside(record, key).get(name)))
      for word, key in (("RM", "scores"), ("gold", "gold"))
    ]
    scored = " · ".join(
      f"{word} {page.minus(value)}" for word, value in scores if value is not None
    )
    kind = LOOKS.get(name, "base")
    head = f'<dt class="{kind}">{escape(MODELS.get(name, name))} <small>{scored}</small></dt>'
    parts.append(f"<div>{head}<dd>{escape(str(response)) or '<em>empty</em>'}</dd></div>")
  prompt = f"<p>{escape(str(record.get('prompt', '')))} <small>{escape(about)}</small></p>"
  return f'<div class="sample">{prompt}<dl>{"".join(parts)}</dl></div>'


def cost(run: Run) -> tuple[str, str, str]:
  """Seconds by stage, memory, seed; versions and settings folded."""
  found = inside(run.results, "seconds")
  seconds = [
    (name, value)
    for name, given in found.items()
    if name != "total" and (value := number(given)) is not None
  ]
  total = number(found.get("total")) or sum(value for _, value in seconds)
  memory, seed = (
    number(run.results.get("peak_rss_gb")),
    run.results.get("seed", run.manifest.get("seed")),
  )
  facts = [
    f"{total:,.0f} seconds in all" if seconds else "",
    f"{memory:.1f} GB at the peak" if memory is not None else "",
  ]
  facts += [f"seed {seed}" if seed is not None else ""]
  body = page.grid([bars("Seconds by stage", seconds, "s")]) if seconds else ""
  folded = page.settings("Configuration", run.config) + page.settings(
    "Versions, device, data", run.manifest
  )
  return page.section("cost", "Cost and settings", ", ".join(filter(None, facts)), body, folded)


ALL = (results, slices, ranking, supervised, reinforced, overoptimised, tax, samples, cost, other)
