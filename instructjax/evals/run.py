"""`instructjax eval` asks every model, scores every answer, and leaves tables, items and a page.

The directory of an evaluation holds `answers/` (what the models answered), `scores/` (what that is
worth, item by item), `results.json` (its layout is described in `results`), `results.csv` (a line
for each number, the paper's beside it), `config.json`, `manifest.json` and `report.html`. Models
and suites can be added later: only what is missing runs.

The page shows everything in the directory. The table of a suite is made as a whole by one command,
so that its numbers are of the same items under the same settings, and it stays until the suite is
evaluated again. A model that is no longer in `--models` stays in the table if it has answered every
item under these settings and was scored by this judge. If it has not, or if its name now stands for
other weights, it is left out and a note says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructjax.errors import UserError
from instructjax.evals import announce, answers, results, subject
from instructjax.evals.announce import Voice
from instructjax.evals.batches import Batch
from instructjax.evals.tasks import (
  Draw,
  Item,
  Logp,
  Reply,
  Scores,
  Suite,
  Task,
  Value,
  fingerprint,
)
from instructjax.runs import provenance, writers
from instructjax.settings import EvalSettings
from instructjax.settings.fields import to_dict
from instructjax.stages import running
from instructjax.system import jsons, places

Open = Callable[[EvalSettings], Suite]
# By the names of the task and of the model, in the order of the items.
RepliesByTask = dict[str, dict[str, list[Reply]]]
ScoresByTask = dict[str, dict[str, list[Scores]]]


def main(
  config: EvalSettings,
  workdir: Path,
  models: Mapping[str, str],
  suites: Mapping[str, Open],
  draws: Mapping[str, Draw] | None = None,
) -> None:
  """Evaluates models on suites and writes the results.

  Args:
    config: the settings.
    workdir: the directory of the evaluation.
    models: {name: source}.
    suites: the functions that open the suites, by name.
    draws: the functions that draw a suite's own part of the page, for all existing suites: the page
      shows those of earlier commands too.

  Raises:
    UserError: if a suite, its data or a model is not as expected.
  """
  places.require_local(workdir, "--workdir")
  with contextlib.ExitStack() as stack:
    voice = stack.enter_context(announce.speaking())
    model_names = ", ".join(f"{name}={source}" for name, source in models.items())
    voice.say(f"models {model_names}; suites {', '.join(suites)}; reading their data")
    voice.doing("reading the data of the suites")
    # Earlier answers are read before the run is opened, so the directory is held from here on.
    stack.enter_context(writers.holding(workdir))
    parts = stack.enter_context(running.devices(config.mesh))
    # A suite may open a judge of ours, which lies on the devices of the mesh.
    opened_suites = [open_suite(config) for open_suite in suites.values()]
    tasks = [task for suite in opened_suites for task in suite.tasks]
    _require_unique_ids(tasks)

    # Everything that can be wrong is checked before the first model is opened.
    notes: list[str] = []
    replies: RepliesByTask = {}
    for suite in opened_suites:
      replies |= earlier_replies(config, workdir, models, suite, notes)
      first_task = suite.tasks[0].name
      names = [*replies[first_task], *models]
      if suite.check is not None:
        suite.check(names)
      if len(names) > 1 and config.baseline not in names:
        notes.append(
          f"{suite.name}: no model is called {config.baseline} (config.baseline), so there are no "
          "differences"
        )
    voice.say(work_to_do(config, workdir, models, tasks))
    run_directory = writers.open_run(workdir, to_dict(config), seed=config.seed)
    stack.enter_context(run_directory)

    # One model is open at a time, and answers all tasks.
    for number, (name, source) in enumerate(models.items()):
      models_after = len(models) - number - 1
      replies_of_model = ask(config, workdir, name, source, tasks, parts, voice, models_after)
      for task_name, task_replies in replies_of_model.items():
        replies[task_name][name] = task_replies

    scores: ScoresByTask = {}
    for task in tasks:
      scores[task.name] = {}
      for model, task_replies in replies[task.name].items():
        model_scores = score(workdir, task, model, task_replies, voice)
        scores[task.name][model] = model_scores

    parts_by_suite = {}
    for suite in opened_suites:
      voice.doing(f"{suite.name}: tables, intervals and comparisons")
      part = results.of_suite(config, workdir, suite, replies, scores)
      parts_by_suite[suite.name] = part
    results.write(workdir, parts_by_suite, models, notes, draws or {})


def _require_unique_ids(tasks: Sequence[Task]) -> None:
  """Raises UserError if a task's name or an id within one repeats: answers are stored by them."""
  task_names = [task.name for task in tasks]
  _require_unique("task", task_names)
  for task in tasks:
    item_ids = [item.id for item in task.items]
    _require_unique(task.name, item_ids)


def _require_unique(owner: str, ids: Sequence[str]) -> None:
  """Raises UserError if an id repeats; `owner` says whose ids they are."""
  seen: set[str] = set()
  for id_ in ids:
    if id_ in seen:
      raise UserError(
        f"{owner}: the id {id_!r} occurs twice; ids of items must be unique within a task"
      )
    seen.add(id_)


def work_to_do(
  config: EvalSettings,
  workdir: Path,
  models: Mapping[str, str],
  tasks: Sequence[Task],
) -> str:
  """Returns the line about the items, the answers that are asked for, and those that are there."""
  items = sum(len(task.items) for task in tasks)
  total, stored = 0, 0
  for task in tasks:
    places = [place for item in task.items for place in answers.places(item.id, task.ask(item))]
    total += len(places) * len(models)
    for name, source in models.items():
      path = answers.file(workdir / "answers", task.name, name)
      by_place = answers.stored(task, path, subject.settings(source, config)).by_place
      stored += sum(place in by_place for place in places)
  line = f"{items:,} items of {len(tasks)} tasks, {total:,} answers of {len(models)} models"
  if stored == total:
    return f"{line}, all of which are there; they are scored, less than a minute without a judge"
  if stored:
    line += f", {stored:,} of them there already"
  return f"{line}; the first batch of a model tells the minutes"


# --- asking ---


def earlier_replies(
  config: EvalSettings,
  workdir: Path,
  models: Mapping[str, str],
  suite: Suite,
  notes: list[str],
) -> RepliesByTask:
  """Returns the replies of models that stay in the table of a suite without being in `models`.

  They are those that have answered and were scored completely. `notes` gets a line for each model
  that has answered something and is left out.
  """
  replies: RepliesByTask = {task.name: {} for task in suite.tasks}
  for name, about in provenance.noted(workdir).items():
    if name in models or about.get("kind") == "reward":
      continue  # it is going to be asked, or is no language model
    begin = f"{suite.name}: {name} is left out, "
    try:
      was_asked, complete = _complete_replies(config, workdir, name, about["source"], suite)
    except UserError:
      notes.append(begin + "it has answered other items or under other settings")
      continue
    if not was_asked:
      continue  # it has answered other suites alone
    # Its numbers must be of the same items as those of the others, and of the same judge.
    if len(complete) < len(suite.tasks):
      notes.append(begin + "it has not answered every item; add it to --models")
    elif not _all_scored(workdir, name, suite, complete):
      notes.append(begin + "another judge has scored it; add it to --models")
    else:
      for task_name, task_replies in complete.items():
        replies[task_name][name] = task_replies
  return replies


def _complete_replies(
  config: EvalSettings,
  workdir: Path,
  name: str,
  source: str,
  suite: Suite,
) -> tuple[bool, dict[str, list[Reply]]]:
  """Returns (whether a model was asked anything, its replies to the tasks that it has completed).

  Raises:
    UserError: if it was asked something else, as in `answers.stored`.
  """
  settings = subject.settings(source, config)
  was_asked = False
  replies: dict[str, list[Reply]] = {}
  for task in suite.tasks:
    path = answers.file(workdir / "answers", task.name, name)
    stored = answers.stored(task, path, settings)
    was_asked = was_asked or bool(stored.by_place)
    if stored.by_place and stored.complete:
      replies[task.name] = answers.replies(task, stored.by_place)
  return was_asked, replies


def _all_scored(
  workdir: Path,
  name: str,
  suite: Suite,
  replies: Mapping[str, Sequence[Reply]],
) -> bool:
  """Returns whether the scores of these replies are stored, from the judge that scores now."""
  for task in suite.tasks:
    stored = _stored_scores(workdir, task, name, replies[task.name])
    if not stored.complete:
      return False
  return True


def ask(
  config: EvalSettings,
  workdir: Path,
  name: str,
  source: str,
  tasks: Sequence[Task],
  parts: int,
  voice: Voice = announce.SILENT,
  models_after: int = 0,
) -> dict[str, list[Reply]]:
  """Returns the replies of a model to each task.

  The model is opened only if an answer is missing, or if it may not be the one that answered.

  Raises:
    UserError: if another model has answered under its name.
  """
  folder = workdir / "answers"
  settings = subject.settings(source, config)
  stored: dict[str, answers.TaskAnswers] = {}
  open_tasks = []
  for task in tasks:
    path = answers.file(folder, task.name, name)
    task_answers = answers.stored(task, path, settings)
    stored[task.name] = task_answers
    if not task_answers.complete:
      open_tasks.append(task)

  noted = provenance.noted(workdir)
  # Even when nothing is missing, a model is opened and compared if its files have changed.
  if open_tasks or provenance.doubtful(noted.get(name), source):
    voice.doing(f"{name}: opening {source}")
    model = subject.open_subject(source, config, parts)
    provenance.compare(workdir, name, model.about)
    writers.note(workdir, models=noted | {name: dict(model.about)})
    _fill(model, open_tasks, name, folder, stored, voice, models_after)

  replies = {}
  for task in tasks:
    replies[task.name] = answers.replies(task, stored[task.name].by_place)
  return replies


def _fill(
  model: subject.Subject,
  tasks: Sequence[Task],
  name: str,
  folder: Path,
  stored: Mapping[str, answers.TaskAnswers],
  voice: Voice,
  models_after: int,
) -> None:
  """Asks a model for the missing answers of these tasks, and says how far it is.

  The answers go to files in `folder` and into `stored`, by task. `models_after` models are asked
  after this one, and are taken to be as fast.
  """
  voice.doing(f"{name}: planning batches")
  # Planning is quick and comes first, so that the estimate covers all tasks.
  plans = {task.name: answers.plan(task, model) for task in tasks}
  costs = [_cost(batch) for batches in plans.values() for batch in batches]
  seconds: list[float] = []  # of the batches so far, -1 where all answers were there
  with announce.stepping(voice, f"{name}: batch", len(costs)) as show:
    for task in tasks:
      path = answers.file(folder, task.name, name)
      begin = time.monotonic()
      for is_new in answers.fill(task, model, plans[task.name], path, stored[task.name]):
        is_first = is_new and not any(took >= 0 for took in seconds)
        seconds.append(time.monotonic() - begin if is_new else -1.0)
        left = announce.seconds_left(costs, seconds)
        estimate = "" if left is None else f"{announce.about(left)} left for this model"
        if is_first and left is not None:
          voice.say(_expectation(name, left, seconds[-1], models_after))
        show(len(seconds), f"  {task.name}  {estimate}")
        begin = time.monotonic()


def _expectation(name: str, left: float, first: float, models_after: int) -> str:
  """Returns the line after the first batch of a model, which took `first` seconds."""
  line = f"{name}: {announce.about(left)} by its first batch, which compiled a program too"
  if models_after:
    total = announce.about(left + models_after * (first + left))
    line += f"; {total} with those after it ({models_after}), if they are as large"
  return line


def _cost(batch: Batch) -> float:
  """Returns the tokens of a batch that are computed; each one that is sampled counts as several.

  Sampling reads all weights for one token of each row (docs/evaluation.md, Speed).
  """
  rows = batch.size * batch.fan
  if batch.decoding is None:
    return float(batch.size * batch.width + rows * batch.end)
  return float(batch.size * batch.width + 6 * rows * batch.decoding.tokens)


# --- scoring ---

# The id of an item, and the fingerprint of what its scores depend on: data, reply and judge.
ScoreKey = tuple[str, str]


class StoredScores(NamedTuple):
  """The scores of a file.

  by_item    the scores, of earlier replies and judges too
  keys       for each item, the key that its scores must have
  complete   whether every item has its scores
  """

  by_item: dict[ScoreKey, Scores]
  keys: list[ScoreKey]
  complete: bool


def score(
  workdir: Path,
  task: Task,
  model: str,
  replies: Sequence[Reply],
  voice: Voice = announce.SILENT,
) -> list[Scores]:
  """Returns the scores of every item; those that are stored are not computed again."""
  stored = _stored_scores(workdir, task, model, replies)
  scores = stored.by_item
  missing = [number for number, key in enumerate(stored.keys) if key not in scores]
  path = answers.file(workdir / "scores", task.name, model)
  with announce.stepping(voice, f"{model} {task.name}: scored", len(missing)) as show:
    for start in range(0, len(missing), task.batch):
      numbers = missing[start : start + task.batch]
      batch_items = [task.items[number] for number in numbers]
      batch_replies = [replies[number] for number in numbers]
      batch_scores = task.score(batch_items, batch_replies)
      lines = []
      for number, item_scores in zip(numbers, batch_scores, strict=True):
        key = stored.keys[number]
        line = _line(task.items[number], key, replies[number], item_scores)
        # What the file holds is what counts, in this run as in the next.
        scores[key] = line["scores"]
        lines.append(line)
      # Each batch is written at once: a judge may be slow, or cost money.
      answers.append(path, lines)
      show(start + len(numbers), "")
  return [scores[key] for key in stored.keys]


def _stored_scores(
  workdir: Path,
  task: Task,
  model: str,
  replies: Sequence[Reply],
) -> StoredScores:
  """Returns the scores that are stored for these replies."""
  metrics = [metric.name for metric in task.metrics]
  rules: list[Any] = [task.about, metrics]
  # Where a program of ours scores there is no judge, and the rules do not mention one.
  if task.judge:
    rules.append(task.judge)
  # The data of an item hold its references: a corrected reference means another score.
  keys: list[ScoreKey] = []
  for item, reply in zip(task.items, replies, strict=True):
    of = fingerprint(rules, dict(item.data), reply.answers)
    keys.append((item.id, of))

  by_item: dict[ScoreKey, Scores] = {}
  path = answers.file(workdir / "scores", task.name, model)
  for row in answers.lines(path):
    key = (row["id"], row["of"])
    by_item[key] = row["scores"]
  complete = all(key in by_item for key in keys)
  return StoredScores(by_item, keys, complete)


def _line(
  item: Item,
  key: ScoreKey,
  reply: Reply,
  scores: Scores,
) -> dict[str, Any]:
  """Returns a line that can be read by itself: the item, the reply and what that is worth."""
  replied: list[Any] = []
  for answer in reply.answers:
    if isinstance(answer, Logp):
      replied.append(answer._asdict())
    else:
      replied.append([completion.text for completion in answer])
  plain_scores = {name: _plain(value) for name, value in scores.items()}
  return {
    "id": item.id,
    "of": key[1],
    "data": dict(item.data),
    "said": replied,  # the name of the field in the files
    "scores": plain_scores,
  }


def _plain(value: Value) -> Value:
  """Returns a score as JSON has it: columns of any kind as a list, an unknown number as null."""
  if value is None or isinstance(value, float | int):
    return jsons.finite(value)
  return jsons.finite(list(value))
