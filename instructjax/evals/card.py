"""A model card made from the files of a run and of an evaluation: `instructjax card`.

After Mitchell et al. (2019, "Model Cards for Model Reporting"). Every number is copied from a file;
the card says so where something was not measured. The limitations are those that the paper lists
(Ouyang et al. 2022, sections 5.2 to 5.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructjax import intervals
from instructjax.errors import UserError
from instructjax.evals import numbers, page, paper
from instructjax.runs import writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.report import files
from instructjax.runs.report.page import flat


class Limitation(NamedTuple):
  """What the paper says of its own models, and what measures it on this one.

  text       the sentence
  measures   names of suites, or what names of tasks begin with; () where nothing measures it
  """

  text: str
  measures: tuple[str, ...] = ()


LIMITATIONS = (
  Limitation(
    "They answer as about 40 contractors, most of them English-speaking, would have them answer; "
    "most comparisons were labelled by one person. Whoever labelled the data of this model stands "
    "for nobody else either."
  ),
  Limitation(
    "They still write toxic and biased text, and more of it when told to.",
    ("toxicity", "bias"),
  ),
  Limitation(
    "They make up facts, and what the text before them does not say.",
    ("truthfulqa", "hallucination"),
  ),
  Limitation("They follow harmful instructions.", ("behaviours/harmful",)),
  Limitation("They go along with false premises.", ("behaviours/false",)),
  Limitation("They hedge where a plain answer is due.", ("behaviours/hedging",)),
  Limitation(
    "They lose track of several explicit constraints in one instruction.",
    ("behaviours/constraints",),
  ),
  Limitation(
    "They were trained on little but English and little code, and at times answer other languages "
    "in English.",
    ("behaviours/lang", "behaviours/code"),
  ),
  Limitation(
    "Small changes of the words, or instructions inside of a text, change the answer.",
    ("behaviours/perturb",),
  ),
  Limitation(
    "They lose on public NLP tasks what their preferences cost (the alignment tax).", ("nlp",)
  ),
  Limitation(
    "Whether an output harms depends on where the model is used, which no number here knows."
  ),
)
USES = (
  "Research on alignment: reproducing and studying supervised fine-tuning, reward models and PPO "
  "from human feedback. It is no product, and nothing here says that it is safe to use as one, "
  "least of all where people may come to harm."
)
# The parts of config.json that say how a model was trained.
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
# What manifest.json says of where the run was made.
MACHINE = ("seed", "python", "device", "devices", "processes")
MEASURED = 12  # metrics of the last step, at most
LINES = 6  # measurements under one limitation, at most
Json = Mapping[str, Any]  # an object of results.json or of a checkpoint


def write(
  model: Path,
  evaluation: Path,
  name: str,
  out: Path,
) -> Path:
  """Writes the card of a run and returns its path.

  Args:
    model: the directory of the run.
    evaluation: the directory of the evaluation.
    name: the name of the model in the evaluation.
    out: the file.

  Raises:
    UserError: if the run is not finished, or the evaluation has no model of that name.
  """
  results = files.whole(evaluation / "results.json", [])
  models = files.inside(results, "models")
  if name not in models:
    names = ", ".join(models) or "nobody"
    raise UserError(
      f"{evaluation}: has results of {names}, not of --name={name}; give the --workdir of "
      "`instructjax eval`"
    )
  text = "\n".join(card(model, results, name))
  out.parent.mkdir(parents=True, exist_ok=True)
  writers.replace(out, text.rstrip() + "\n")
  return out


def card(model: Path, results: Json, name: str) -> Iterator[str]:
  """Yields the lines of the card.

  Raises:
    UserError: if the run is not finished.
  """
  # Only a finished run has this folder; it holds the description of the model too.
  final = Checkpoints(model / "checkpoints" / "final")
  if final.latest() is None:
    raise UserError(f"{model}: this run is not finished; run its command again to complete it")
  yield f"# Model card: {name}\n"
  yield "Made by `instructjax card` from the files of the run and of its evaluation; do not edit.\n"
  yield from _model(final.extra(), results["models"][name])
  yield from _training(model)
  yield "## Intended use\n"
  yield f"{USES}\n"
  yield from _evaluation(results, name)
  yield from _limitations(results, name)


# --- the model and its training ---


def _model(checkpoint: Json, evaluated: Json) -> Iterator[str]:
  """Yields what the checkpoint and the evaluation record about the model."""
  model = checkpoint["model"]
  facts: dict[str, Any] = {
    "kind": checkpoint["kind"],
    "family": model["family"],
    "parameters": f"{evaluated.get('parameters', 0):,}",
  }
  shape = model.get("config") or {}
  for key in ("vocab_size", "context", "width", "depth", "heads", "kv_heads", "mlp"):
    if key in shape:
      facts[key] = shape[key]
  facts["tokenizer"] = Path(model["tokenizer"]).name
  facts["weights (fingerprint)"] = str(evaluated.get("weights", ""))[:16]
  if evaluated.get("asked"):
    facts["asked"] = evaluated["asked"]
  if model.get("base"):  # the run has trained an adapter
    facts["adapter of"] = Path(model["base"]["source"]).name
  yield "## The model\n"
  yield from _table(("", ""), facts.items())


def _training(model: Path) -> Iterator[str]:
  """Yields the settings, the last metrics and the versions that the run directory records."""
  yield "## Training\n"
  # A model of the quickstart lies two folders below the directory that holds these files.
  folders = [folder for folder in (model, model.parent.parent) if _has_config(folder)]
  if not folders:
    yield "Not recorded beside the model.\n"
    return
  run = files.read(folders[0])
  yield from _table(("setting", "value"), _settings(run.config))

  # The quickstart holds the curves of several stages; its models have the names of the stages.
  stage = model.name if model.name in run.curves else run.config.get("stage", "")
  curves = run.curves.get(stage, {})
  if curves:
    yield f"The last values of `metrics.jsonl`, stage `{stage}`:\n"
    metrics = [metric for metric in curves if not metric.startswith("time/")]
    last_values = [(metric, _last(curves[metric])) for metric in metrics[:MEASURED]]
    yield from _table(("metric", "value"), last_values)

  # The quickstart keeps the fingerprints of its data in its configuration.
  fingerprints = files.inside(run.manifest, "fingerprints")
  fingerprints = fingerprints or files.inside(run.config, "fingerprints")
  facts: list[tuple[str, Any]] = []
  for key, value in fingerprints.items():
    facts.append((f"data: {key}", str(value)[:16]))
  facts += [(key, run.manifest[key]) for key in MACHINE if key in run.manifest]
  facts += files.inside(run.manifest, "versions").items()
  yield from _table(("made with", ""), facts)


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields the settings that say how the model was trained; those that are empty are left out."""
  training = {key: value for key, value in config.items() if key in SETTINGS}
  if "stage" not in training:  # the quickstart has no stage, and all of its settings count
    training = config
  for key, value in flat(training):
    if value not in ("", '""', "null"):
      yield key, _without_folders(value)


def _has_config(folder: Path) -> bool:
  return (folder / "config.json").is_file()


def _last(curve: Mapping[int, float]) -> str:
  """Returns the value of a curve, {step: value}, at its last step."""
  return f"{curve[max(curve)]:.4g}"


def _without_folders(value: str) -> str:
  """Returns the last part of an absolute path: the folders of a machine are nobody's business."""
  return Path(value).name if value.startswith("/") else value


# --- the evaluation ---


def _evaluation(results: Json, name: str) -> Iterator[str]:
  """Yields a table for each suite that has numbers of the model."""
  sizes = ", ".join(paper.SIZES)
  yield "## Evaluation\n"
  yield (
    "95 % intervals are over clusters of items, about other items and not about other training "
    "runs; n counts items, and 60 in 20 are 60 items in 20 clusters. The paper's numbers are for "
    f"{sizes}.\n"
  )
  many = intervals.many(numbers.count_intervals(results))
  if many:
    yield f"{many}\n"
  paper_column = "paper"
  if paper.split(name)[1] and paper.sizes(name):
    # A model METHOD@SIZE has one number of the paper, and the head of its column names the size.
    paper_column = f"paper, {paper.sizes(name)[0]}"
  for suite, part in results["suites"].items():
    baseline = part["settings"]["baseline"]
    rows, notes = [], set()
    for task, about in part["tasks"].items():
      rows += _rows(task, about, name, baseline)
      if about["about"]:
        notes.add(about["about"])
    rows += _rows_of_all_models(suite, part, name)
    if not rows:
      continue
    yield f"### {suite}\n"
    head = ("task", "metric", "n", name, f"less {baseline}", paper_column)
    yield from _table(head, rows)
    for note in sorted(notes):
      yield f"- {note}"
    yield ""


def _rows(
  task: str,
  about: Json,
  name: str,
  baseline: str,
) -> Iterator[tuple[str, ...]]:
  """Yields a line for each metric of a task that the model has a value of."""
  estimates = about["models"].get(name, {})
  differences = about["differences"].get(name, {})
  for metric in about["metrics"]:
    value = estimates.get(metric["name"])
    if value is None or value["value"] is None:
      continue  # the metric applies to none of the items
    difference = differences.get(metric["name"])
    if name == baseline or not difference:
      difference_cell = "–"
    else:
      difference_cell = _number(metric, difference)
    yield (
      task,
      metric["name"],
      numbers.counted(value),
      _number(metric, value),
      difference_cell,
      _paper_numbers(metric, name),
    )


def _rows_of_all_models(suite: str, part: Json, name: str) -> Iterator[tuple[str, ...]]:
  """Yields a line for each number that a suite has of all models together.

  Those of pairs, of judges and of other models stand there too, with their names: a win rate is
  read beside the others. What the page folds (slices) is in results.csv.
  """
  for number in numbers.of_all_models(suite, part):
    if number.folded:
      continue
    metric = number.metric if number.model == name else f"{number.metric}: {number.model}"
    count = numbers.counted(number.estimate)
    yield number.task, metric, count, numbers.text(number), "–", "–"


def _paper_numbers(metric: Json, name: str) -> str:
  """Returns the paper's values for a model of this name, with one unit for all of them."""
  values = metric["paper"].get(name, ())
  if not values:
    return "–"
  line = " / ".join(_scaled(metric, value) for value in values)
  return f"{line} %" if metric["percent"] else line


# --- limitations ---


def _limitations(results: Json, name: str) -> Iterator[str]:
  """Yields what the paper says of its models, and what was measured of it on this one."""
  yield "## Limitations\n"
  yield "What the paper reports of its own models, and what was measured of it here:\n"
  for limitation in LIMITATIONS:
    yield f"- **{limitation.text}**"
    # A limitation that nothing measures is not to be passed over in silence.
    if not limitation.measures:
      yield "  Nothing that is measured here speaks to this."
      continue
    measured, missing_suites = [], []
    for measure in limitation.measures:
      lines = list(_measured(results, name, measure))
      measured += lines
      suite = measure.partition("/")[0]
      if not lines and suite not in missing_suites:
        missing_suites.append(suite)
    for line in measured[:LINES]:
      yield f"  {line}"
    if missing_suites:
      yield f"  Not measured: `instructjax eval --suite={','.join(missing_suites)}`."
  yield ""


def _measured(results: Json, name: str, measure: str) -> Iterator[str]:
  """Yields the first metric of each task of a suite, or of the tasks whose names begin so."""
  suite = measure.partition("/")[0]
  for task, about in files.inside(results, "suites", suite, "tasks").items():
    belongs = measure == suite or task.startswith(measure)
    if not belongs or not about["metrics"]:
      continue
    metric = about["metrics"][0]
    estimates = about["models"].get(name, {})
    value = estimates.get(metric["name"])
    if value and value["value"] is not None:
      line = f"{task}: {metric['name']} {_number(metric, value)}, n {numbers.counted(value)}"
      # A model that says nothing errs never.
      for other in about["metrics"]:
        if other["name"] == "answered":
          line += f"; answered {_number(other, estimates['answered'])}"
      yield f"{line}."


# --- numbers and tables ---


def _number(metric: Json, plain: Json) -> str:
  """Returns an estimate with its unit and, where it has one, its interval; a dash if unknown."""
  value = page.estimate(plain)
  if math.isnan(value.value):
    return "–"
  text = _scaled(metric, value.value)
  if metric["percent"]:
    text += " %"
  if math.isfinite(value.low + value.high):
    text += f" ({_scaled(metric, value.low)} to {_scaled(metric, value.high)})"
  return text


def _scaled(metric: Json, value: float) -> str:
  """Returns a value as its metric is shown, without the unit."""
  if metric["percent"]:
    return f"{100 * value:.1f}"
  return f"{value:.{metric['decimals']}f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
  """Yields the lines of a table in Markdown, and an empty one; nothing for a table without rows."""
  lines = [_row(cells) for cells in rows]
  if lines:
    yield _row(head)
    yield f"|{'---|' * len(head)}"
    yield from lines
    yield ""


def _row(cells: Sequence[Any]) -> str:
  """Returns a line of a table; what would end the cell or the line is escaped."""
  texts = []
  for cell in cells:
    text = str(cell).replace("|", "\\|")
    texts.append(text.replace("\n", " "))
  return f"| {' | '.join(texts)} |"
