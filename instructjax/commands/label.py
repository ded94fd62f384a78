"""`instructjax label`: serves the labeling page, and moves tasks and answers in and out of it.

Without an action the command serves the page. The actions `import`, `export` and `agreement`
work on the SQLite file that the page fills. Each action imports what it needs of
instructjax/label when it runs, so that the parser of every other command stays quick.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from instructjax.commands.options import SEED, number, whole
from instructjax.errors import UserError
from instructjax.label.tasks import KINDS
from instructjax.system import atomic, jsons

LISTED = 20  # answers that an import leaves out and names


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the options of the page, and the three actions with options of their own."""
  _database_argument(command)
  command.add_argument(
    "--tasks",
    metavar="FILE",
    help="JSONL: prompts; to rank also completions or (from sample) responses",
  )
  command.add_argument(
    "--kind", choices=KINDS, help="what labelers do; not needed for a --db that exists"
  )
  command.add_argument(
    "--per-prompt", type=whole(1, 1000), metavar="N", help="labelers of each prompt; default 1"
  )
  command.add_argument(
    "--instructions",
    metavar="FILE",
    help="for the labelers, shown as text; default ours, after the paper",
  )
  command.add_argument(
    "--labelers", default="", metavar="ID,ID", help="who may sign in; default anyone"
  )
  command.add_argument(
    "--lease",
    type=number(0.01, 100_000),
    default=30,
    metavar="MINUTES",
    help="until an idle prompt is free; default 30",
  )
  command.add_argument("--seed", type=SEED, help="of the order of outputs; default 0")
  command.add_argument(
    "--host",
    default="127.0.0.1",
    help="default 127.0.0.1; anything wider asks for the printed token",
  )
  command.add_argument(
    "--port", type=whole(0, 65_535), default=8123, help="default 8123; 0 takes a free one"
  )
  command.add_argument(
    "--name", action="append", default=[], help="another host name that the page is opened by"
  )
  actions = command.add_subparsers(dest="action", metavar="{import,export,agreement}")
  _import_arguments(actions)
  _export_arguments(actions)
  _agreement_arguments(actions)


def _database_argument(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--db", default="labels.sqlite", help="the file that holds it all; default labels.sqlite"
  )


def _action(actions: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:
  """Returns the parser of an action, which has --db as all of them have."""
  action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  _database_argument(action)
  return action


def _import_arguments(actions: argparse._SubParsersAction) -> None:
  action = _action(actions, "import", "tasks and answers from records or from another tool")
  action.add_argument("--file", required=True)
  action.add_argument("--format", required=True, choices=["records", "labelstudio", "argilla"])
  action.add_argument("--kind", choices=KINDS, help="not needed for a --db that exists")


def _export_arguments(actions: argparse._SubParsersAction) -> None:
  action = _action(actions, "export", "answers as records to train on, or for another tool")
  action.add_argument("--out", required=True)
  action.add_argument(
    "--format",
    default="records",
    choices=["records", "answers", "labelstudio", "argilla"],
    help="default records; answers has everything: skips, notes, orders, seconds",
  )


def _agreement_arguments(actions: argparse._SubParsersAction) -> None:
  # argparse formats help texts with %, hence the two signs.
  text = "how far labelers agree, with 95 %% intervals over prompts"
  action = _action(actions, "agreement", text)
  action.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> None:
  """Runs the label command that the command line parsed."""
  handlers = {None: _serve, "import": _import, "export": _export, "agreement": _agreement}
  handlers[args.action](args)


def _serve(args: argparse.Namespace) -> None:
  """Adds the tasks of --tasks to the file and serves the page until it is stopped."""
  try:
    # The web server is an optional dependency; everything else here works without it.
    from instructjax.label import server
  except ImportError as error:
    raise UserError(
      f"the labeling page needs the package {error.name}: run pip install 'instructjax[label]'"
    ) from None
  from instructjax.label import store, tasks

  kind = _kind(args)
  # The files that the user named are read before the database is created, so that a wrong path
  # leaves no empty database behind.
  instructions = server.instructions(kind, args.instructions)
  new_tasks, left_out = tasks.read(args.tasks, kind) if args.tasks else ([], [])
  with contextlib.closing(store.create(args.db, kind, args.per_prompt, args.seed)) as db:
    added, repeated = store.add(db, new_tasks)
    progress = store.progress(db)
    if not progress["tasks"]:
      raise UserError(f"{args.db}: no prompts; give --tasks=FILE")
    for line in left_out:
      print(line)
    print(
      f"{args.db}: {progress['tasks']} {kind} tasks ({added} new, {repeated} known), "
      f"{progress['answers']} of {progress['wanted']} answers"
    )
    # --labelers=ID,ID; an empty one comes from a comma at the end.
    labelers = frozenset(name for name in args.labelers.split(",") if name)
    options = server.Options(instructions, labelers, lease=60.0 * args.lease)  # in seconds
    server.serve(db, options, args.host, args.port, tuple(args.name))


def _kind(args: argparse.Namespace) -> str:
  """Returns --kind or, where it is not given, the kind that an existing file was made for.

  Raises:
    UserError: there is neither.
  """
  from instructjax.label import store

  if args.kind:
    return args.kind
  if not Path(args.db).is_file():
    raise UserError(
      f"{args.db}: no such file; give --kind=demonstration, comparison or continuation to make it"
    )
  with contextlib.closing(store.open_existing(args.db)) as db:
    return store.settings(db).kind


def _import(args: argparse.Namespace) -> None:
  """Reads tasks and answers from a file into the database."""
  from instructjax.label import exchange, store

  kind = _kind(args)
  # The whole file is read and checked before anything is stored.
  tasks, answers, left_out = exchange.load(args.file, kind, args.format)
  with contextlib.closing(store.create(args.db, kind)) as db:
    new_tasks, old_tasks = store.add(db, tasks)
    new_answers, old_answers = store.put(db, answers, time.time())
  for line in left_out[:LISTED]:
    print(f"left out: {line}", file=sys.stderr)
  if len(left_out) > LISTED:
    print(f"left out: ... and {len(left_out) - LISTED} more", file=sys.stderr)
  counted = f", {len(left_out)} answers left out" if left_out else ""
  print(
    f"{args.db}: {new_tasks} new tasks ({old_tasks} known), "
    f"{new_answers} new answers ({old_answers} known){counted}"
  )


def _export(args: argparse.Namespace) -> None:
  """Writes the answers of the database in the format of --format."""
  from instructjax.data.records import records
  from instructjax.label import argilla, exchange, labelstudio, store

  with contextlib.closing(store.open_existing(args.db)) as db:
    kind = store.settings(db).kind
    tasks = store.tasks(db)
    answers = store.answers(db)
  # Skips are answers without a value.
  out = Path(args.out)
  count = sum(answer.value is not None for answer in answers)
  if args.format == "records":
    if not count:
      raise UserError(f"{args.db}: no answers yet")
    if kind == "demonstration":
      records.write(out, exchange.demonstrations(answers))
    else:
      records.write(out, exchange.comparisons(answers))
  elif args.format == "answers":
    rows = exchange.to_answers(answers)
    _write(out, jsons.lines(rows))
  else:
    exchange.require_form(kind, args.format, out)
    module = labelstudio if args.format == "labelstudio" else argilla
    rows = module.to_rows(tasks, answers)
    _write(out, jsons.text_with_nulls(rows, indent=1) + "\n")
  print(f"{out}: {count} answers to {len(tasks)} tasks, {len(answers) - count} skips")
  if args.format == "labelstudio":
    # Label Studio shows nothing of a task that its interface does not name.
    interface = out.with_suffix(".xml")
    most_outputs = max((len(task.completions) for task in tasks), default=0)
    _write(interface, labelstudio.interface(kind, most_outputs))
    print(f"{interface}: the labeling interface of these tasks")


def _write(path: Path, text: str) -> None:
  """Writes a file whole; raises UserError where that is not possible."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(path, text)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error}); name another --out") from error


def _agreement(args: argparse.Namespace) -> None:
  """Prints how far the labelers of a database agree."""
  from instructjax.data.records import agreement
  from instructjax.label import exchange, store

  with contextlib.closing(store.open_existing(args.db)) as db:
    kind = store.settings(db).kind
    answers = store.answers(db)
  # Two demonstrations of a prompt are never equal, so there is nothing to count.
  if kind == "demonstration":
    raise UserError(f"{args.db} holds {kind}s: agreement is about rankings")
  estimates = agreement.measure(exchange.comparisons(answers))
  if args.json:
    # An estimate that rests on nothing is NaN, which is not valid JSON.
    rows = {name: estimate._asdict() for name, estimate in estimates.items() if estimate.n}
    print(jsons.text_with_nulls(rows))
  else:
    print(agreement.as_text(estimates))
