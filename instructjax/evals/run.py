"""`instructjax eval`: asks every model, scores every answer, and leaves the tables, the items and a
page.

The directory of an evaluation holds `answers/` (what models said), `scores/` (what that is
worth, item by item), `results.json` (the layout is that of `results`), `results.csv` (a line for
each number, the paper's beside it), `config.json`, `manifest.json` and `report.html`.  Models
and suites can be added later: only what is missing runs.

What the page shows is all that the directory knows.  The table of a suite is made by one
command, at once, so that its numbers are of the same items under the same settings, and stands
there until the suite is evaluated again.  A model that no longer is in `--models` stays in the
table where it has answered every item under these settings, and was scored by this judge; where
it has not, or where the weights under its name are others now, it is left out with a line that
says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.evals import answers, results, subject
from instructjax.evals.tasks import Draw, Item, Logp, Said, Scores, Suite, Task, fingerprint
from instructjax.runs import provenance, writers
from instructjax.runs.progress import progressing
from instructjax.settings.fields import to_dict
from instructjax.stages import running

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/eval.py
Open = Callable[[Config], Suite]


def main(
  config: Config,
  workdir: Path,
  models: Mapping[str, str],
  suites: Mapping[str, Open],
  draws: Mapping[str, Draw] | None = None,
) -> None:
  """Evaluates the models, by name and source, on the suites, by name; `draws` are those of all
  suites that there are.
  """
  c = config
  with contextlib.ExitStack() as stack:
    parts = stack.enter_context(running.devices(c.mesh))
    opened = [
      suite(c) for suite in suites.values()
    ]  # a judge of ours lies on the devices of the mesh
    tasks = [task for suite in opened for task in suite.tasks]
    _checked(tasks)
    notes: list[str] = []
    heard: dict[str, dict[str, list[Said]]] = {}
    for suite in opened:
      heard |= before(c, workdir, models, suite, notes)
      names = [*heard[suite.tasks[0].name], *models]
      if suite.check is not None:
        suite.check(names)
      if len(names) > 1 and c.baseline not in names:
        notes.append(
          f"{suite.name}: no model is called {c.baseline} (config.baseline), so there are no "
          "differences"
        )
    stack.enter_context(writers.open_run(workdir, to_dict(c), seed=c.seed))
    for name, source in models.items():
      for task, said in ask(c, workdir, name, source, tasks, parts).items():
        heard[task][name] = said
    worth = {
      task.name: {
        model: score(workdir, task, model, said) for model, said in heard[task.name].items()
      }
      for task in tasks
    }
    found = {suite.name: results.of_suite(c, workdir, suite, heard, worth) for suite in opened}
    results.leave(workdir, found, models, notes, draws or {})


def before(
  config: Config, workdir: Path, models: Mapping[str, str], suite: Suite, notes: list[str]
) -> dict[str, dict[str, list[Said]]]:
  """What models beside `models` have said in a suite, by task: those that have answered everything
  and were scored.

  `notes` gets a line for each that has begun and is left out.
  """
  found: dict[str, dict[str, list[Said]]] = {task.name: {} for task in suite.tasks}
  for name, about in provenance.noted(workdir).items():
    if name in models:
      continue
    try:
      said = {
        task.name: _kept(config, workdir, name, about["source"], task) for task in suite.tasks
      }
    except UserError:
      notes.append(
        f"{suite.name}: {name} is left out, it has answered other items or under other settings"
      )
      continue
    if all(one is None for one in said.values()):
      continue  # it was never asked
    if not all(said.values()):
      notes.append(
        f"{suite.name}: {name} is left out, it has not answered every item; add it to --models"
      )
    elif not all(_scored(workdir, task, name, said[task.name] or [])[2] for task in suite.tasks):
      notes.append(
        f"{suite.name}: {name} is left out, another judge has scored it; add it to --models"
      )
    else:
      for task, one in said.items():
        found[task][name] = one or []
  return found


def _kept(config: Config, workdir: Path, name: str, source: str, task: Task) -> list[Said] | None:
  """What a model has said in a task, [] where that is not all, None where it is nothing; raises as
  `answers.missing`.
  """
  path = answers.file(workdir / "answers", task.name, name)
  known, _, incomplete = answers.missing(task, path, subject.settings(source, config))
  return None if not known else [] if incomplete else answers.said(task, known)


def _checked(tasks: Sequence[Task]) -> None:
  """Raises UserError where a name or an id stands twice: answers are kept by them."""
  for what, names in [
    ("task", [task.name for task in tasks]),
    *((task.name, [i.id for i in task.items]) for task in tasks),
  ]:
    seen: set[str] = set()
    for name in names:
      if name in seen:
        raise UserError(
          f"{what}: the id {name!r} stands twice; ids of items must be unique within a task"
        )
      seen.add(name)


def ask(
  config: Config, workdir: Path, name: str, source: str, tasks: Sequence[Task], parts: int
) -> dict[str, list[Said]]:
  """What a model says in each task; it is opened only if anything is missing, or if it is not
  surely the one that answered.

  Raises UserError where another model has answered under its name.
  """
  settings = subject.settings(source, config)
  files = {task.name: answers.file(workdir / "answers", task.name, name) for task in tasks}
  there = {task.name: answers.missing(task, files[task.name], settings) for task in tasks}
  open_tasks = [task for task in tasks if there[task.name][2]]
  noted = provenance.noted(workdir)
  if open_tasks or provenance.doubtful(noted.get(name), source):
    model = subject.open_subject(source, config, parts)
    provenance.compare(workdir, name, model.about)
    writers.note(workdir, models=noted | {name: dict(model.about)})
    plans = {task.name: answers.plan(task, model) for task in open_tasks}
    with progressing(name, 0, sum(map(len, plans.values()))) as progress:
      done = 0
      for task in open_tasks:
        known, prints, _ = there[task.name]
        done = answers.fill(
          task, model, plans[task.name], files[task.name], known, prints, progress, done
        )
  return {task.name: answers.said(task, there[task.name][0]) for task in tasks}


def score(workdir: Path, task: Task, model: str, said: Sequence[Said]) -> list[Scores]:
  """The scores of every item; those that are kept are taken as they are."""
  known, prints, _ = _scored(workdir, task, model, said)
  todo = [at for at, item in enumerate(task.items) if (item.id, prints[at]) not in known]
  path = answers.file(workdir / "scores", task.name, model)
  with progressing(f"{model} {task.name}", 0, len(todo)) as progress:
    for start in range(0, len(todo), task.batch):
      at = todo[start : start + task.batch]
      found = task.score([task.items[i] for i in at], [said[i] for i in at])
      rows = [
        _line(task.items[i], prints[i], said[i], one) for i, one in zip(at, found, strict=True)
      ]
      answers.append(path, rows)
      known |= {(row["id"], row["of"]): row["scores"] for row in rows}
      progress.show(start + len(at), {})
  return [known[item.id, of] for item, of in zip(task.items, prints, strict=True)]


def _scored(
  workdir: Path, task: Task, model: str, said: Sequence[Said]
) -> tuple[dict[tuple[str, str], Scores], list[str], bool]:
  """(the scores that are kept, by item and fingerprint; the fingerprints of those that are wanted;
  whether all are there).
  """
  rules = [task.about, [metric.name for metric in task.metrics], *filter(None, [task.judge])]
  prints = [
    fingerprint(rules, dict(item.data), one.answers)
    for item, one in zip(task.items, said, strict=True)
  ]
  path = answers.file(workdir / "scores", task.name, model)
  known = {(row["id"], row["of"]): row["scores"] for row in answers.lines(path)}
  return (
    known,
    prints,
    all((item.id, of) in known for item, of in zip(task.items, prints, strict=True)),
  )


def _line(item: Item, of: str, said: Said, found: Scores) -> dict[str, Any]:
  """A line that can be read by itself: the item, what the model said and what that is worth."""
  plain = {
    name: value if value is None or isinstance(value, float | int) else list(value)
    for name, value in found.items()
  }
  texts = [
    one._asdict() if isinstance(one, Logp) else [completion.text for completion in one]
    for one in said.answers
  ]
  return {"id": item.id, "of": of, "data": dict(item.data), "said": texts, "scores": plain}
