"""A model card out of the files of a run and of an evaluation: `instructjax card --model=runs/ppo
--eval=runs/eval --name=ptx`.

After Mitchell et al. (2019, "Model Cards for Model Reporting").  Every number is copied from a
file that stands beside it; what was not measured is said to be so.  The limitations are those
that the paper lists (Ouyang et al. 2022, sections 5.2 to 5.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.evals import page, paper
from instructjax.runs import writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.report import files
from instructjax.runs.report.page import flat

# (what the paper says of its models, what measures it here: suites, or tasks by the beginning of
# their names)
LIMITATIONS = (
  (
    "They answer as about 40 contractors, most of them English-speaking, would have them answer; "
    "most comparisons were labelled "
    "by one person. Whoever labelled the data of this model stands for nobody else either.",
    (),
  ),
  ("They still write toxic and biased text, and more of it when told to.", ("toxicity", "bias")),
  (
    "They make up facts, and what the text before them does not say.",
    ("truthfulqa", "hallucination"),
  ),
  ("They follow harmful instructions.", ("behaviours/harmful",)),
  ("They go along with false premises.", ("behaviours/false",)),
  ("They hedge where a plain answer is due.", ("behaviours/hedging",)),
  (
    "They lose track of several explicit constraints in one instruction.",
    ("behaviours/constraints",),
  ),
  (
    "They were trained on little but English and little code, and at times answer other languages "
    "in English.",
    ("behaviours/lang", "behaviours/code"),
  ),
  (
    "Small changes of the words, or instructions inside of a text, change the answer.",
    ("behaviours/perturb",),
  ),
  ("They lose on public NLP tasks what their preferences cost (the alignment tax).", ("nlp",)),
  ("Whether an output harms depends on where the model is used, which no number here knows.", ()),
)
USES = (
  "Research on alignment: reproducing and studying supervised fine-tuning, reward models and PPO "
  "from human feedback. It is no "
  "product, and nothing here says that it is safe to use as one, least of all where people may "
  "come to harm."
)
SETTINGS = (
  "stage",
  "seed",
  "batch",
  "epochs",
  "steps",
  "optimizer",
  "ppo",
  "sampling",
  "lora",
  "top",
  "pairs",
  "mesh",
)
MEASURED = 12  # metrics of the last step that are shown


def write(model: Path, evaluation: Path, name: str, out: Path) -> Path:
  """Writes the card.  Raises UserError where the run is not finished, or the evaluation has no
  model of that name.
  """
  results = files.whole(evaluation / "results.json", [])
  if name not in files.inside(results, "models"):
    known = ", ".join(files.inside(results, "models")) or "nobody"
    raise UserError(
      f"{evaluation}: has results of {known}, not of --name={name}; give the --workdir of "
      "`instructjax eval`"
    )
  out.parent.mkdir(parents=True, exist_ok=True)
  writers.replace(out, "\n".join(card(model, results, name)).rstrip() + "\n")
  return out


def card(model: Path, results: Mapping[str, Any], name: str) -> Iterator[str]:
  """The lines of the card."""
  final = Checkpoints(model / "checkpoints" / "final")
  if final.latest() is None:
    raise UserError(f"{model}: this run is not finished; run its command again to complete it")
  about, known = final.extra(), results["models"][name]
  yield f"# Model card: {name}\n"
  yield "Made by `instructjax card` from the files of the run and of its evaluation; do not edit.\n"
  yield from _model(about, known)
  yield from _training(model)
  yield "## Intended use\n"
  yield f"{USES}\n"
  yield from _evaluation(results, name)
  yield from _limitations(results, name)


def _model(about: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
  model = about["model"]
  yield "## The model\n"
  facts = {
    "kind": about["kind"],
    "family": model["family"],
    "parameters": f"{known.get('parameters', 0):,}",
  }
  shape = model.get("config") or {}
  facts |= {
    key: shape[key]
    for key in ("vocab_size", "context", "width", "depth", "heads", "kv_heads", "mlp")
    if key in shape
  }
  facts |= {
    "tokenizer": Path(model["tokenizer"]).name,
    "weights (fingerprint)": str(known.get("weights", ""))[:16],
  }
  if model.get("base"):
    facts["adapter of"] = Path(model["base"]["source"]).name
  yield from _table(("", ""), facts.items())


def _training(model: Path) -> Iterator[str]:
  """What the run directory says, or that of the quickstart above it."""
  folder = next(
    (one for one in (model, model.parent.parent) if (one / "config.json").is_file()), None
  )
  yield "## Training\n"
  if folder is None:
    yield "Not recorded beside the model.\n"
    return
  run = files.read(folder)
  of_stage = {key: value for key, value in run.config.items() if key in SETTINGS}
  settings = of_stage if "stage" in of_stage else run.config  # the quickstart's are all its own
  rows = [(key, _plain(value)) for key, value in flat(settings) if value not in ("", '""', "null")]
  yield from _table(("setting", "value"), rows)
  stage = model.name if model.name in run.curves else run.config.get("stage", "")
  last = {metric: curve[max(curve)] for metric, curve in run.curves.get(stage, {}).items()}
  if last:
    yield f"The last values of `metrics.jsonl`, stage `{stage}`:\n"
    shown = [
      (metric, f"{value:.4g}") for metric, value in last.items() if not metric.startswith("time/")
    ]
    yield from _table(("metric", "value"), shown[:MEASURED])
  prints = files.inside(run.manifest, "fingerprints") or files.inside(run.config, "fingerprints")
  facts = [(f"data: {key}", str(value)[:16]) for key, value in prints.items()]
  facts += [
    (key, run.manifest[key])
    for key in ("seed", "python", "device", "devices", "processes")
    if key in run.manifest
  ]
  facts += list(files.inside(run.manifest, "versions").items())
  yield from _table(("made with", ""), facts)


def _evaluation(results: Mapping[str, Any], name: str) -> Iterator[str]:
  yield "## Evaluation\n"
  yield (
    "95 % intervals are bootstraps over clusters of items, about other items and not about other "
    "training runs; n counts "
    f"items. The paper's numbers are for {', '.join(paper.SIZES)}.\n"
  )
  for suite, part in results["suites"].items():
    base = part["settings"]["baseline"]
    rows = [row for task, about in part["tasks"].items() for row in _rows(task, about, name, base)]
    if not rows:
      continue
    yield f"### {suite}\n"
    size = ", ".join(paper.sizes(name)) if paper.split(name)[1] else ""
    yield from _table(
      ("task", "metric", "n", name, f"less {base}", f"paper, {size}" if size else "paper"), rows
    )
    notes = {about["about"] for about in part["tasks"].values() if about["about"]}
    yield from (f"- {note}" for note in sorted(notes))
    yield ""


def _rows(task: str, about: Mapping[str, Any], name: str, base: str) -> Iterator[tuple[str, ...]]:
  for metric in about["metrics"]:
    found = about["models"].get(name, {}).get(metric["name"])
    if found is None or found["value"] is None:
      continue
    less = about["differences"].get(name, {}).get(metric["name"]) if base != name else None
    theirs = metric["paper"].get(name, ())
    shown = " / ".join(_scaled(metric, value) for value in theirs)
    yield (
      task,
      metric["name"],
      str(found["n"]),
      _number(metric, found),
      _number(metric, less) if less else "–",
      shown + " %" * (metric["percent"] and bool(shown)) or "–",
    )


def _limitations(results: Mapping[str, Any], name: str) -> Iterator[str]:
  """What the paper says of its models, and what was measured of it on this one."""
  yield "## Limitations\n"
  yield "What the paper reports of its own models, and what was measured of it here:\n"
  for text, places in LIMITATIONS:
    yield f"- **{text}**"
    if not places:
      yield "  Nothing that is measured here speaks to this."
      continue
    found = [line for place in places for line in _about(results, name, place)]
    yield from (f"  {line}" for line in found[:6])
    missing = [
      place.partition("/")[0] for place in places if not list(_about(results, name, place))
    ]
    if missing:
      yield f"  Not measured: `instructjax eval --suite={','.join(dict.fromkeys(missing))}`."
  yield ""


def _about(results: Mapping[str, Any], name: str, place: str) -> Iterator[str]:
  """The first metric of each task of a suite, or of the tasks whose names begin so."""
  suite = place.partition("/")[0]
  for task, about in files.inside(results, "suites", suite, "tasks").items():
    if not (task.startswith(place) or place == suite):
      continue
    metric = about["metrics"][0] if about["metrics"] else None
    found = about["models"].get(name, {}).get(metric["name"]) if metric else None
    if metric and found and found["value"] is not None:
      yield f"{task}: {metric['name']} {_number(metric, found)}, n {found['n']}."


def _number(metric: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  e = page.estimate(found)
  ends = (
    f" ({_scaled(metric, e.low)} to {_scaled(metric, e.high)})"
    if math.isfinite(e.low + e.high)
    else ""
  )
  return f"{_scaled(metric, e.value)}{' %' if metric['percent'] else ''}{ends}"


def _scaled(metric: Mapping[str, Any], value: float) -> str:
  """A value as its metric is shown, without the unit."""
  scale, places = (100, 1) if metric["percent"] else (1, metric["decimals"])
  return f"{scale * value:.{places}f}"


def _plain(value: str) -> str:
  """A path without the folders of the machine."""
  return Path(value).name if value.startswith("/") else value


def _table(head: Sequence[str], rows: Any) -> Iterator[str]:
  """A table in Markdown."""
  cell = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
  lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
  if lines:
    yield f"| {' | '.join(map(cell, head))} |"
    yield f"|{'---|' * len(head)}"
    yield from lines
    yield ""
