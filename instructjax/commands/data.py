"""`instructjax data ACTION`: the options of each action and what it does.  Imports nothing slow
before an action needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from instructjax.data.records import records, sources, spellings
from instructjax.errors import UserError

KINDS = tuple(kind for kind in records.KINDS if kind != "text")  # those with a prompt


def arguments(command: argparse.ArgumentParser) -> None:
  """The actions and their options."""
  actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
  add = lambda name, text: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
  check = add("check", "validate files and list every problem with file, line and field")
  check.add_argument("files", nargs="+", metavar="FILE")
  _kind(check, [*records.KINDS])
  _clean(add("clean", "the paper's hygiene: consent, duplicates, cap, split by user, PII, length"))
  stats = add("stats", "the paper's Tables 1 and 6 to 11 for any data")
  stats.add_argument(
    "files", nargs="+", metavar="FILE", help="train, valid or test in its name is its split"
  )
  _kind(stats, KINDS)
  _tokenizer(stats, "without it lengths are in UTF-8 bytes")
  stats.add_argument("--group", default="user", choices=["user", "organisation"], help="of Table 8")
  stats.add_argument("--json", action="store_true", help="print one JSON object")
  compare = add(
    "compare",
    "the use cases of two files: differences with 95 %% intervals, total variation distance",
  )
  compare.add_argument("files", nargs=2, metavar="FILE")
  _kind(compare, KINDS)
  compare.add_argument("--seed", type=int, default=0)
  compare.add_argument("--json", action="store_true", help="print one JSON object")
  expand = add(
    "expand", "demonstrations from few-shot prompts of labelers: K pairs make K examples"
  )
  expand.add_argument("file")
  expand.add_argument("--out", required=True, metavar="FILE")
  expand.add_argument("--shots", type=int, help="pairs before the target; default all others")
  expand.add_argument(
    "--samples", type=int, default=1, help="examples of each pair with other shots; default 1"
  )
  expand.add_argument("--seed", type=int, default=0)
  convert = add("convert", "any source as one JSONL file of our records")
  convert.add_argument("source")
  convert.add_argument("--out", required=True, metavar="FILE")
  _kind(convert, [*records.KINDS])
  convert.add_argument(
    "--leave-out",
    action="store_true",
    help="the rows with problems, which are listed, instead of stopping",
  )
  tone = add("tone", "write the quickstart's data as JSONL files")
  tone.add_argument("--out", required=True)
  tone.add_argument("--seed", type=int, default=0)
  benchmarks = add(
    "benchmarks", "fetch real evaluation data and write the rows that `instructjax eval` reads"
  )
  benchmarks.add_argument("--out", required=True, metavar="DIR")


def _kind(command: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
  command.add_argument(
    "--kind", choices=kinds, help="default: what the fields of a file's first record say"
  )
  command.add_argument("--spelling", default="native", choices=[*spellings.SPELLINGS])
  command.add_argument(
    "--fields",
    default="",
    metavar="OURS=THEIRS,...",
    help="such as prompt=question,completion=answer",
  )


def _tokenizer(command: argparse.ArgumentParser, without: str) -> None:
  command.add_argument(
    "--tokenizer", help=f"a model folder, tokenizer.json, .model, .gguf, or bytes; {without}"
  )


def _clean(command: argparse.ArgumentParser) -> None:
  command.add_argument("--in", dest="files", nargs="+", required=True, metavar="FILE")
  command.add_argument(
    "--out", required=True, metavar="DIR", help="gets train, valid, test.jsonl and report.json"
  )
  _kind(command, KINDS)
  command.add_argument(
    "--prefix",
    type=int,
    help="characters that make near-duplicates; default 128, 0 for no such rule",
  )
  command.add_argument(
    "--cap", type=int, help="prompts of one user; default 200, 0 for no such rule"
  )
  command.add_argument(
    "--group", choices=["user", "organisation"], help="of the cap and the split; default user"
  )
  command.add_argument("--valid", type=float, help="share of the users; default 0.1")
  command.add_argument("--test", type=float, help="share of the users; default 0.1")
  command.add_argument(
    "--pii", choices=["drop", "mask", "off"], help="what to do in the training split; default drop"
  )
  command.add_argument(
    "--missing-consent", choices=["keep", "drop"], help="records that do not say; default keep"
  )
  _tokenizer(command, "without it no length is checked")
  command.add_argument(
    "--prompt-tokens",
    type=int,
    help="longer prompts are left out; default 1024, 0 for no such rule",
  )
  command.add_argument("--response-tokens", type=int, help="default 1024, 0 for no such rule")
  command.add_argument(
    "--long-responses", choices=["keep", "drop"], help="the stages cut them; default keep"
  )
  command.add_argument("--seed", type=int, help="of the split and of what a rule keeps; default 0")


def run(args: argparse.Namespace) -> None:
  """The action.  Raises UserError for whatever a user can mend."""
  actions = {
    "check": check,
    "clean": clean,
    "stats": stats,
    "compare": compare,
    "expand": expand,
    "tone": tone,
  }
  actions |= {"convert": convert, "benchmarks": benchmarks}
  actions[args.action](args)


@contextlib.contextmanager
def _writing(out: str) -> Iterator[None]:
  """Raises UserError where --out cannot be written."""
  try:
    yield
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another place") from error


def check(args: argparse.Namespace) -> None:
  bad, total = 0, 0
  for file in args.files:
    found, kind, problems = _examined(file, args)
    for problem in problems:
      print(problem, file=sys.stderr)
    bad, total = bad + bool(problems), total + len(problems)
    if not problems:
      print(f"{file}: {len(found)} {kind}s, no problem")
  if total:
    raise UserError(
      f"{_count(total, 'problem')} in {bad} of {_count(len(args.files), 'file')}; mend the lines "
      "above"
    )


def clean(args: argparse.Namespace) -> None:
  from instructjax.data.curation import hygiene
  from instructjax.data.tokens import tokenizers
  from instructjax.system.tables import Table, show

  given = {
    name: getattr(args, name)
    for name in hygiene.Hygiene.__dataclass_fields__
    if getattr(args, name) is not None
  }
  settings = hygiene.Hygiene(**given)
  out = Path(args.out)
  targets = {name: out / f"{name}.jsonl" for name in hygiene.SPLITS}
  clash = {
    file
    for file in args.files
    for target in targets.values()
    if Path(file).resolve() == target.resolve()
  }
  if clash:
    raise UserError(
      f"--out={out}: would write over the input {clash.pop()}; choose another directory"
    )
  rows, kinds = _all(args)
  if len(kinds) > 1:
    raise UserError(
      f"--in: {' and '.join(sorted(kinds))} files together; clean each kind by itself, with the "
      "same --seed"
    )
  tokenizer = tokenizers.by_reference(args.tokenizer) if args.tokenizer else None
  cleaned = hygiene.clean(rows, settings, tokenizer)
  report = {"files": args.files, "tokenizer": args.tokenizer, **hygiene.report(cleaned, settings)}
  with _writing(args.out):
    out.mkdir(parents=True, exist_ok=True)
    for name, target in targets.items():
      target.unlink(missing_ok=True)  # of an earlier run
      if cleaned.splits[name]:
        records.write(target, cleaned.splits[name])
    (out / "report.json").write_text(
      json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
  rules = [
    (rule.rule, rule.before, rule.removed, rule.before - rule.removed, rule.note)
    for rule in cleaned.rules
  ]
  splits = [
    (
      str(targets[name]) if one["records"] else f"{name}: nothing, no file",
      one["records"],
      one["users"],
    )
    for name, one in report["splits"].items()
  ]
  show(
    [
      Table("Rules", ("rule", "records", "removed", "left", "note"), rules),
      Table("Splits", ("file", "records", "users"), splits),
    ]
  )


def stats(args: argparse.Namespace) -> None:
  from instructjax.data.curation import statistics
  from instructjax.system import tables

  parts = []
  for file in args.files:
    found, kind = _read(file, args)
    parts.append(statistics.Part(statistics.DATA_SETS[kind], statistics.split_name(file), found))
  length, unit = _length(args.tokenizer)
  found = statistics.tables(parts, length, unit, args.group)
  if args.json:
    print(json.dumps({"tables": tables.as_json(found)}, ensure_ascii=False))
  else:
    tables.show(found)


def compare(args: argparse.Namespace) -> None:
  from instructjax.data.curation import mix
  from instructjax.system import tables

  a, b = (_read(file, args)[0] for file in args.files)
  found = mix.compare(a, b, seed=args.seed)
  if args.json:
    shares = {
      name: {"a": a, "b": b, "difference": one._asdict()}
      for name, (a, b, one) in found.shares.items()
    }
    print(json.dumps(found._asdict() | {"shares": shares}, ensure_ascii=False))
    return
  tables.show([mix.table(found, tuple(args.files))])
  print(
    f"total variation distance {found.distance:.3f}; two samples of one mix of these sizes differ "
    "by up to "
    f"{found.chance:.3f} in 95 of 100 draws"
  )


def expand(args: argparse.Namespace) -> None:
  from instructjax.data.curation import few_shot

  found = records.read(args.file, "few_shot")
  rows = [
    demo
    for one in found
    for demo in few_shot.expand(one, shots=args.shots, samples=args.samples, seed=args.seed)
  ]
  with _writing(args.out):
    records.write(args.out, rows)
  print(f"{args.out}: {len(rows)} demonstrations from {_count(len(found), 'few-shot prompt')}")


def convert(args: argparse.Namespace) -> None:
  found, kind, problems = _examined(args.source, args)
  if not args.leave_out or not found:
    records.report(problems)
  for problem in problems:
    print(f"left out: {problem}", file=sys.stderr)
  with _writing(args.out):
    records.write(args.out, found)
  print(f"{args.out}: {_count(len(found), kind)}; {_count(len(problems), 'problem')}")


def tone(args: argparse.Namespace) -> None:
  from instructjax.data.public import tone

  tasks = tone.tasks(args.seed)
  with _writing(args.out):
    paths = tone.write(args.out, tasks)
  print("\n".join(map(str, paths)))


def benchmarks(args: argparse.Namespace) -> None:
  from instructjax.data.public import benchmarks
  from instructjax.system.tables import Table, show

  with _writing(args.out):
    found = benchmarks.write(args.out)
  rows = [
    (f"{Path(args.out) / one.name}.jsonl", count, one.field, one.origin, one.about)
    for one, count in found
  ]
  show(
    [
      Table(
        "Real data for evaluations",
        ("file", "rows", "for", "origin and licence", "what the copy has"),
        rows,
      )
    ]
  )


# --- files ---


def infer(source: str, spelling: str = "native", fields: str = "") -> str | None:
  """The kind of record that a source holds, by its spelling, its fields or its first readable row;
  None where none tells.
  """
  return spellings.kind(spelling, fields) or sources.kind_of(source)


def _examined(source: str, args: argparse.Namespace) -> tuple[list, str, list[str]]:
  """(records, kind, problems) of a file or another source."""
  kind = args.kind
  try:
    kind = kind or infer(source, args.spelling, args.fields)
    if kind is None:
      return (
        [],
        "record",
        [
          f"{source}: no line has the fields of a record; give its kind, "
          f"--kind={'|'.join(records.KINDS)}"
        ],
      )
    spelling = spellings.choose(args.spelling, kind, args.fields, place="--")
  except UserError as error:
    return [], kind or "record", str(error).split("\n")
  found, problems = sources.examine(source, kind, spelling)
  return found, kind, problems


def _read(file: str, args: argparse.Namespace) -> tuple[list, str]:
  """(records, kind) of a file.  Raises UserError for every problem and for plain text, which has no
  prompts.
  """
  found, kind, problems = _examined(file, args)
  records.report(problems)
  if kind == "text":
    raise UserError(f"{file}: holds documents without prompts; give {', '.join(KINDS)} files")
  return found, kind


def _all(args: argparse.Namespace) -> tuple[list, set[str]]:
  both = [_read(file, args) for file in args.files]
  return [row for found, _ in both for row in found], {kind for _, kind in both}


def _length(reference: str | None) -> tuple[Callable[[str], int], str]:
  if not reference:
    return lambda text: len(text.encode()), "UTF-8 bytes"
  from instructjax.data.tokens import tokenizers

  tokenizer = tokenizers.by_reference(reference)
  return lambda text: len(tokenizer.encode(text)), f"tokens of {reference}"


def _count(n: int, what: str) -> str:
  return f"{n} {what}{'' if n == 1 else 's'}"
