"""`instructjax label`: people write demonstrations, rate and rank outputs on a page of this
machine.

What they say becomes records.  store.py keeps it, server.py and guard.py serve page.html and its
scripts, exchange.py reads and writes files, agreement.py measures.  Nothing here imports jax.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from instructjax.errors import UserError
from instructjax.system import atomic


def arguments(command: argparse.ArgumentParser) -> None:
  """Without an action it serves the page; the actions read and write the file that the page fills."""
  kinds = ["demonstration", "comparison", "continuation"]
  db = lambda to: to.add_argument(
    "--db", default="labels.sqlite", help="the file that holds it all; default labels.sqlite"
  )
  db(command)
  command.add_argument(
    "--tasks",
    metavar="FILE",
    help="JSONL: prompts; to rank also completions or (from sample) responses",
  )
  command.add_argument(
    "--kind", choices=kinds, help="what labelers do; known for a --db that is there"
  )
  command.add_argument(
    "--per-prompt", type=int, metavar="N", help="labelers of each prompt; default 1"
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
    type=float,
    default=30,
    metavar="MINUTES",
    help="until an idle prompt is free; default 30",
  )
  command.add_argument("--seed", type=int, help="of the order of outputs; default 0")
  command.add_argument(
    "--host",
    default="127.0.0.1",
    help="default 127.0.0.1; anything wider asks for the printed token",
  )
  command.add_argument("--port", type=int, default=8123, help="default 8123; 0 takes a free one")
  command.add_argument(
    "--name", action="append", default=[], help="another host name that the page is opened by"
  )
  actions = command.add_subparsers(dest="action", metavar="{import,export,agreement}")
  act = lambda name, text: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  take = act("import", "tasks and answers from records or from another tool")
  db(take)
  take.add_argument("--file", required=True)
  take.add_argument("--format", required=True, choices=["records", "labelstudio", "argilla"])
  take.add_argument("--kind", choices=kinds, help="known for a --db that is there")
  give = act("export", "answers as records to train on, or for another tool")
  db(give)
  give.add_argument("--out", required=True)
  give.add_argument(
    "--format",
    default="records",
    choices=["records", "answers", "labelstudio", "argilla"],
    help="default records; answers has everything: skips, notes, orders, seconds",
  )
  agree = act("agreement", "how far labelers agree, with 95 %% intervals over prompts")
  db(agree)
  agree.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> None:
  """One of the label commands, as the command line parsed it."""
  {None: _serve, "import": _import, "export": _export, "agreement": _agreement}[args.action](args)


def _serve(args: argparse.Namespace) -> None:
  try:
    from instructjax.label import server
  except ImportError as error:
    raise UserError(
      f"the labeling page needs the package {error.name}: run pip install 'instructjax[label]'"
    ) from None
  from instructjax.label import store, tasks

  kind = _kind(args)
  text = server.instructions(kind, args.instructions)
  found, left_out = tasks.read(args.tasks, kind) if args.tasks else ([], [])
  db = store.create(args.db, kind, args.per_prompt, args.seed)
  try:
    added, known = store.add(db, found)
    state = store.progress(db)
    if not state["tasks"]:
      raise UserError(f"{args.db}: no prompts; give --tasks=FILE")
    news = [
      f"{state['tasks']} {kind} tasks ({added} new, {known} known)",
      f"{state['answers']} of {state['wanted']} answers",
    ]
    print("\n".join([*left_out, f"{args.db}: {', '.join(news)}"]))
    labelers = frozenset(name for name in args.labelers.split(",") if name)
    options = server.Options(text, labelers, 60.0 * args.lease)
    server.serve(db, options, args.host, args.port, tuple(args.name))
  finally:
    db.close()


def _kind(args: argparse.Namespace) -> str:
  """--kind, or that of the file that is there."""
  from instructjax.label import store

  if args.kind:
    return args.kind
  if not Path(args.db).is_file():
    raise UserError(
      f"{args.db}: no such file; give --kind=demonstration, comparison or continuation to make it"
    )
  db = store.open_existing(args.db)
  try:
    return store.settings(db).kind
  finally:
    db.close()


def _import(args: argparse.Namespace) -> None:
  from instructjax.label import exchange, store

  kind = _kind(args)
  tasks, answers = exchange.load(args.file, kind, args.format)
  db = store.create(args.db, kind)
  try:
    added, known = store.add(db, tasks)
    new, before = store.put(db, answers, time.time())
  finally:
    db.close()
  print(f"{args.db}: {added} new tasks ({known} known), {new} new answers ({before} known)")


def _export(args: argparse.Namespace) -> None:
  from instructjax.data.records import records
  from instructjax.label import exchange, store

  db = store.open_existing(args.db)
  try:
    kind, tasks, answers = store.settings(db).kind, store.tasks(db), store.answers(db)
  finally:
    db.close()
  out, given = Path(args.out), [answer for answer in answers if answer.value is not None]
  if args.format == "records":
    if not given:
      raise UserError(f"{args.db}: no answers yet")
    rows = (
      exchange.demonstrations(given) if kind == "demonstration" else exchange.comparisons(given)
    )
    records.write(out, rows)
  elif args.format == "answers":
    _write(
      out,
      "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exchange.to_answers(answers)),
    )
  else:
    exchange.elsewhere(kind, args.format, out)
    rows = (
      exchange.to_labelstudio(tasks, answers)
      if args.format == "labelstudio"
      else exchange.to_argilla(tasks, answers)
    )
    _write(out, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
  print(f"{out}: {len(given)} answers to {len(tasks)} tasks, {len(answers) - len(given)} skips")
  if args.format == "labelstudio":
    config = out.with_suffix(".xml")
    _write(config, exchange.labelstudio_config(kind, max(len(task.completions) for task in tasks)))
    print(f"{config}: the labeling interface of these tasks")


def _write(path: Path, text: str) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.replace(path, text)
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error}); name another --out") from error


def _agreement(args: argparse.Namespace) -> None:
  from instructjax.label import agreement, exchange, store

  db = store.open_existing(args.db)
  try:
    kind, answers = store.settings(db).kind, store.answers(db)
  finally:
    db.close()
  if kind == "demonstration":
    raise UserError(f"{args.db} holds {kind}s: agreement is about rankings")
  found = agreement.measure(exchange.comparisons(answers))
  if args.json:
    print(json.dumps({name: one._asdict() for name, one in found.items() if one.n}))
  else:
    print(agreement.text(found))
