"""`instructjax data ACTION`: the options of each action, and what it does.

Nothing slow is imported before an action needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from instructjax.data.records import records, sources, spellings
from instructjax.data.records.detect import Notes, sentences
from instructjax.data.records.named import LAYOUTS, Layout
from instructjax.data.records.problems import Problems
from instructjax.data.records.records import Record, Spelling
from instructjax.data.tokens.vocabulary import Tokenizer
from instructjax.errors import UserError
from instructjax.system import jsons
from instructjax.system.counting import counting

# The kinds of records that have a prompt. Documents have none, so the hygiene rules and the tables
# do not apply to them.
KINDS = tuple(kind for kind in records.KINDS if kind != "text")
BATCH = 1024  # records whose tokens are counted at once


# --- options ---


def arguments(command: argparse.ArgumentParser) -> None:
  """Adds the actions and their options to the command."""
  actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

  def add(name: str, text: str) -> argparse.ArgumentParser:
    return actions.add_parser(name, help=text, description=text, allow_abbrev=False)

  _add_check_options(
    add("check", "validate files and list every problem with file, line and field")
  )
  _add_clean_options(
    add("clean", "the paper's hygiene: consent, duplicates, cap, split by user, PII, length")
  )
  _add_stats_options(add("stats", "the paper's Tables 1 and 6 to 11 for any data"))
  _add_compare_options(
    add(
      "compare",
      # argparse fills in what follows a percent sign, so it is doubled.
      "the use cases of two files: differences with 95 %% intervals, total variation distance",
    )
  )
  _add_expand_options(
    add("expand", "demonstrations from few-shot prompts of labelers: K pairs make K examples")
  )
  _add_convert_options(add("convert", "any source as one JSONL file of our records"))

  # Public data.
  tone = add("tone", "write the quickstart's data as JSONL files")
  tone.add_argument("--out", required=True)
  _add_force_option(tone)
  tone.add_argument("--seed", type=int, default=0)

  benchmarks = add(
    "benchmarks", "fetch real evaluation data and write the rows that `instructjax eval` reads"
  )
  benchmarks.add_argument("--out", required=True, metavar="DIR")
  _add_force_option(benchmarks)


def _add_check_options(command: argparse.ArgumentParser) -> None:
  command.add_argument("files", nargs="+", metavar="FILE")
  _add_kind_options(command, [*records.KINDS])
  # What a stage would cut and leave out, with its defaults.
  _add_tokenizer_option(command, "without it nothing is said of what the stages would cut")
  command.add_argument("--prompt-tokens", type=int, default=1024, help="default 1024")
  command.add_argument("--response-tokens", type=int, default=1024, help="default 1024")
  command.add_argument(
    "--separator", default=" ", help="between a prompt and its completion; default a space"
  )


def _add_clean_options(command: argparse.ArgumentParser) -> None:
  # The options have no defaults here: `hygiene.Hygiene` has them, and the texts repeat them.
  command.add_argument("--in", dest="files", nargs="+", required=True, metavar="FILE")
  command.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="gets train, valid, test.jsonl and report.json",
  )
  _add_force_option(command)
  _add_kind_options(command, KINDS)
  # The rules of section 3.2 of the paper: near-duplicates, a cap for each user, splits by user, and
  # no personal data in the training split.
  command.add_argument(
    "--prefix",
    type=int,
    help="characters that make near-duplicates; default 128, 0 for no such rule",
  )
  command.add_argument(
    "--cap",
    type=int,
    help="prompts of one user; default 200, 0 for no such rule",
  )
  command.add_argument(
    "--group",
    choices=["user", "organisation"],
    help="of the cap and the split; default user",
  )
  command.add_argument("--valid", type=float, help="share of the users; default 0.1")
  command.add_argument("--test", type=float, help="share of the users; default 0.1")
  command.add_argument(
    "--pii",
    choices=["drop", "mask", "off"],
    help="what to do in the training split; default drop",
  )
  command.add_argument(
    "--missing-consent",
    choices=["keep", "drop"],
    help="records that do not say; default keep",
  )
  # The paper's limits of the lengths, in tokens (App. C).
  _add_tokenizer_option(command, "without it no length is checked")
  command.add_argument(
    "--prompt-tokens",
    type=int,
    help="longer prompts are left out; default 1024, 0 for no such rule",
  )
  command.add_argument("--response-tokens", type=int, help="default 1024, 0 for no such rule")
  command.add_argument(
    "--long-responses",
    choices=["keep", "drop"],
    help="the stages cut them; default keep",
  )
  command.add_argument("--seed", type=int, help="of the split and of what a rule keeps; default 0")


def _add_stats_options(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "files",
    nargs="+",
    metavar="FILE",
    help="train, valid or test in its name is its split",
  )
  _add_kind_options(command, KINDS)
  _add_tokenizer_option(command, "without it lengths are in UTF-8 bytes")
  command.add_argument(
    "--group",
    default="user",
    choices=["user", "organisation"],
    help="of Table 8",
  )
  command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_compare_options(command: argparse.ArgumentParser) -> None:
  command.add_argument("files", nargs=2, metavar="FILE")
  _add_kind_options(command, KINDS)
  command.add_argument("--seed", type=int, default=0)
  command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_expand_options(command: argparse.ArgumentParser) -> None:
  command.add_argument("file")
  command.add_argument("--out", required=True, metavar="FILE")
  _add_force_option(command)
  command.add_argument("--shots", type=int, help="pairs before the target; default all others")
  command.add_argument(
    "--samples",
    type=int,
    default=1,
    help="examples of each pair with other shots; default 1",
  )
  command.add_argument("--seed", type=int, default=0)


def _add_convert_options(command: argparse.ArgumentParser) -> None:
  command.add_argument("source")
  command.add_argument("--out", required=True, metavar="FILE")
  _add_force_option(command)
  _add_kind_options(command, [*records.KINDS])
  command.add_argument(
    "--leave-out",
    action="store_true",
    help="the rows with problems, which are listed, instead of stopping",
  )


def _add_force_option(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    "--force",
    action="store_true",
    help="replace files under these names that hold something else",
  )


def _add_kind_options(command: argparse.ArgumentParser, kinds: Sequence[str]) -> None:
  """Adds the options that say how the rows of a file are read."""
  command.add_argument(
    "--kind",
    choices=kinds,
    help="default: what the fields of a file's first record say",
  )
  command.add_argument(
    "--spelling",
    default="",
    choices=[*LAYOUTS],
    help="default: what the fields of the first records say",
  )
  command.add_argument(
    "--fields",
    default="",
    metavar="OURS=THEIRS,...",
    help="such as prompt=question,completion=answer",
  )
  command.add_argument(
    "--empty-completions",
    action="store_true",
    help="an empty text may be ranked among the completions",
  )


def _add_tokenizer_option(command: argparse.ArgumentParser, without: str) -> None:
  command.add_argument(
    "--tokenizer",
    help=f"a model folder, tokenizer.json, .model, .gguf, or bytes; {without}",
  )


# --- actions ---


def run(args: argparse.Namespace) -> None:
  """Runs the action.

  Raises:
    UserError: for whatever the user can correct.
  """
  actions = {
    "check": check,
    "clean": clean,
    "stats": stats,
    "compare": compare,
    "expand": expand,
    "convert": convert,
    "tone": tone,
    "benchmarks": benchmarks,
  }
  actions[args.action](args)


@contextlib.contextmanager
def _writing(out: str) -> Iterator[None]:
  """Turns every failure to write under --out into a UserError."""
  try:
    yield
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another place") from error


@contextlib.contextmanager
def _placing(args: argparse.Namespace, folder: Path) -> Iterator[Path]:
  """Yields a folder for the new files of an action, which then move into `folder`, all or none.

  Whatever else is in `folder` stays. A file that is there already and would change is replaced with
  --force alone, because it may be the user's own.

  Raises:
    UserError: a file would change, or cannot be written.
  """
  nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
  with _writing(args.out), tempfile.TemporaryDirectory(prefix=".new-", dir=nearest) as temporary:
    yield Path(temporary)
    files = sorted(Path(temporary).iterdir())
    changed = [file.name for file in files if _would_change(folder / file.name, file)]
    if changed and not args.force:
      raise UserError(
        f"--out={args.out}: {', '.join(changed)} in {folder} would be overwritten; choose another "
        "place, or replace what is there with --force"
      )
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
      file.replace(folder / file.name)


def _would_change(target: Path, file: Path) -> bool:
  """Returns whether something else than the content of a file is at its target."""
  return target.exists() and not filecmp.cmp(target, file, shallow=False)


class Checked(NamedTuple):
  """What a file holds: how many records of which kind, its problems, and what a stage would cut."""

  records: int
  kind: str
  problems: Problems
  cuts: str = ""


def check(args: argparse.Namespace) -> None:
  """Prints the number of records of each good file, and the problems of the others.

  With a tokenizer it also prints what a stage would cut and leave out.
  """
  tokenizer = _tokenizer(args.tokenizer)
  bad_files = 0
  total = 0
  for file in args.files:
    checked = _check_file(file, args, tokenizer)
    # Problems go to stderr, so that stdout has the good files alone.
    for line in checked.problems.lines():
      print(line, file=sys.stderr)
    total += checked.problems.count
    if checked.problems.count:
      bad_files += 1
    else:
      print(f"{file}: {_counted(checked.records, checked.kind)}, no problem")
      if checked.cuts:
        print(f"  {checked.cuts}")
  if total:
    problems_in_all = _counted(total, "problem")
    files_in_all = _counted(len(args.files), "file")
    raise UserError(f"{problems_in_all} in {bad_files} of {files_in_all}; correct the lines above")


def _check_file(file: str, args: argparse.Namespace, tokenizer: Tokenizer | None) -> Checked:
  """Reads a file, of which a batch of records at most is in memory."""
  problems = Problems()
  try:
    kind, spelling = _kind_and_spelling(file, args)
  except UserError as error:
    for line in str(error).split("\n"):
      problems.add(line)
    return Checked(0, "record", problems)
  cuts = _Cuts(file, kind, args, tokenizer) if tokenizer is not None else None
  count = 0
  notes = Notes()
  with counting(f"check {file}", f"{kind}s") as show:
    for record, row_problems in _each(file, kind, spelling, args, notes):
      for problem in row_problems:
        problems.add(problem)
      if record is None:
        continue
      count += 1
      show(count)
      for problem in cuts.add(record) if cuts is not None else ():
        problems.add(problem)
  for problem in cuts.finish() if cuts is not None else ():
    problems.add(problem)
  _say(notes, file)
  return Checked(count, kind, problems, cuts.sentence() if cuts is not None else "")


class _Cuts:
  """Counts what a stage would cut of the records of a file and find too long."""

  def __init__(self, file: str, kind: str, args: argparse.Namespace, tokenizer: Tokenizer):
    from instructjax.data.batches import counts, pipeline

    self.numbers = counts.Counts()
    self.batch: list = []
    # How a batch becomes rows of tokens. Few-shot prompts become demonstrations first.
    self.make: Callable[[list], object] | None = None
    if kind in ("demonstration", "comparison"):
      answers = pipeline.demonstrations if kind == "demonstration" else pipeline.comparisons
      self.make = partial(
        answers,
        tokenizer=tokenizer,
        prompt=args.prompt_tokens,
        response=args.response_tokens,
        separator=args.separator,
        name=file,
        long="drop",
        counts=self.numbers,
      )
    elif kind == "prompt":
      self.make = partial(
        pipeline.prompts,
        tokenizer=tokenizer,
        prompt=args.prompt_tokens,
        name=file,
        long="drop",
        counts=self.numbers,
      )
    elif kind == "text":  # which is never cut
      self.make = partial(pipeline.document_ids, tokenizer=tokenizer, name=file)

  def add(self, record: Record) -> list[str]:
    """Takes a record and returns the problems of its batch where that is full."""
    if self.make is not None:
      self.batch.append(record)
    return self.finish() if len(self.batch) == BATCH else []

  def finish(self) -> list[str]:
    """Returns the problems of the records since the last batch."""
    batch, self.batch = self.batch, []
    try:
      if batch and self.make is not None:
        self.make(batch)
    except UserError as error:
      return str(error).split("\n")
    return []

  def sentence(self) -> str:
    """Returns the numbers in words; "" for records of which nothing is cut."""
    from instructjax.data.batches import counts

    return counts.sentence(self.numbers, "too long") if self.numbers.prompts else ""


def clean(args: argparse.Namespace) -> None:
  """Applies the hygiene rules to the files and writes the splits and a report."""
  from instructjax.data.curation import hygiene
  from instructjax.system.tables import Table, show

  # What the command line leaves out keeps the default of the settings.
  options = {name: getattr(args, name) for name in hygiene.Hygiene.__dataclass_fields__}
  settings = hygiene.Hygiene(**{name: v for name, v in options.items() if v is not None})
  out = Path(args.out)
  targets = {name: out / f"{name}.jsonl" for name in hygiene.SPLITS}
  # Whoever cleans train.jsonl into its own directory would lose the original.
  target_paths = {target.resolve() for target in targets.values()}
  for file in args.files:
    if Path(file).resolve() in target_paths:
      raise UserError(f"--out={out}: would write over the input {file}; choose another directory")
  rows, kinds = _read_all(args)
  if len(kinds) > 1:
    # The split of a user depends on the seed alone, so files that are cleaned apart fit together.
    raise UserError(
      f"--in: {' and '.join(sorted(kinds))} files together; clean each kind by itself, with the "
      "same --seed"
    )
  tokenizer = _tokenizer(args.tokenizer)
  with counting("clean", "records searched for personal data") as show_searched:
    cleaned = hygiene.clean(rows, settings, tokenizer, show=show_searched)
  report = {"files": args.files, "tokenizer": args.tokenizer, **hygiene.report(cleaned, settings)}
  with _placing(args, out) as folder:
    for name, target in targets.items():
      if cleaned.splits[name]:
        records.write(folder / target.name, cleaned.splits[name])
      elif target.exists():
        # An empty split writes no file. One that is there would be taken for its own.
        raise UserError(
          f"--out={out}: this run puts nothing into {name}, and {target} is there already; move it "
          "away, or choose another directory"
        )
    jsons.write(folder / "report.json", report)

  rule_rows = [
    (rule.rule, rule.before, rule.removed, rule.before - rule.removed, rule.note)
    for rule in cleaned.rules
  ]
  split_rows = []
  for name, counts in report["splits"].items():
    file = str(targets[name]) if counts["records"] else f"{name}: nothing, no file"
    split_rows.append((file, counts["records"], counts["users"]))
  show(
    [
      Table("Rules", ("rule", "records", "removed", "left", "note"), rule_rows),
      Table("Splits", ("file", "records", "users"), split_rows),
    ]
  )


def stats(args: argparse.Namespace) -> None:
  """Prints the paper's tables about the files."""
  from instructjax.data.curation import statistics
  from instructjax.system import tables

  # Each file is a column or a row of its own: its data set (Table 6) comes from its kind, and its
  # split from its name.
  parts = []
  for file in args.files:
    rows, kind = _read(file, args)
    parts.append(statistics.Part(statistics.DATA_SETS[kind], statistics.split_name(file), rows))
  length, unit = _length_function(args.tokenizer)
  all_tables = statistics.tables(parts, length, unit, args.group)
  if args.json:
    print(jsons.text_with_nulls({"tables": tables.as_json(all_tables)}))
  else:
    tables.show(all_tables)


def compare(args: argparse.Namespace) -> None:
  """Prints how the use cases of two files differ."""
  from instructjax.data.curation import mix
  from instructjax.system import tables

  rows_a, _ = _read(args.files[0], args)
  rows_b, _ = _read(args.files[1], args)
  # Shares of nothing, and a distance of 0.000 between them, would look like a result.
  for file, rows in zip(args.files, (rows_a, rows_b), strict=True):
    if not any(row.use_case for row in rows):
      raise UserError(
        f"{file}: no record names a use case, so there is nothing to compare; give the records a "
        "use_case, one of Table 1 or your own"
      )
  comparison = mix.compare(rows_a, rows_b, seed=args.seed)
  if args.json:
    shares = {
      name: {"a": a, "b": b, "difference": difference._asdict()}
      for name, (a, b, difference) in comparison.shares.items()
    }
    print(jsons.text_with_nulls({**comparison._asdict(), "shares": shares}))
    return
  tables.show([mix.table(comparison, tuple(args.files))])
  print(
    f"total variation distance {comparison.distance:.3f}; two samples of one mix of these sizes "
    f"differ by up to {comparison.chance:.3f} in 95 of 100 draws"
  )


def expand(args: argparse.Namespace) -> None:
  """Writes the demonstrations that the few-shot prompts of a file make."""
  from instructjax.data.curation import few_shot

  prompts = records.read(args.file, "few_shot")
  # A prompt with K pairs makes K examples for each of --samples (section 3.2 of the paper).
  demonstrations = []
  for prompt in prompts:
    demonstrations += few_shot.expand(
      prompt,
      shots=args.shots,
      samples=args.samples,
      seed=args.seed,
    )
  out = Path(args.out)
  with _placing(args, out.parent) as folder:
    records.write(folder / out.name, demonstrations)
  count = _counted(len(prompts), "few-shot prompt")
  print(f"{args.out}: {len(demonstrations)} demonstrations from {count}")


def convert(args: argparse.Namespace) -> None:
  """Writes the records of any source as one JSONL file, a record at a time."""
  kind, spelling = _kind_and_spelling(args.source, args)
  problems = Problems()
  notes = Notes()
  count = 0

  def good_records() -> Iterator[Record]:
    nonlocal count
    with counting(f"convert {args.source}", f"{kind}s") as show:
      for record, row_problems in _each(args.source, kind, spelling, args, notes):
        for problem in row_problems:
          problems.add(problem)
        # After a problem there is nothing to write, but the other problems are to be listed.
        if record is not None and (args.leave_out or not problems.count):
          count += 1
          yield record
          show(count)

  out = Path(args.out)
  with _placing(args, out.parent) as folder:
    records.write(folder / out.name, good_records())
    _say(notes, args.source)
    # Where there is not a single record, there is nothing to leave in the file.
    if problems.count and not (args.leave_out and count):
      raise UserError("\n".join(problems.lines()))
  for line in problems.lines():
    print(f"left out: {line}", file=sys.stderr)
  print(f"{args.out}: {_counted(count, kind)}; {_counted(problems.count, 'problem')}")


def tone(args: argparse.Namespace) -> None:
  """Writes the data of the quickstart and prints the names of the files."""
  from instructjax.data.public import tone

  tasks = tone.tasks(args.seed)
  out = Path(args.out)
  with _placing(args, out) as folder:
    paths = tone.write(folder, tasks)
  for path in paths:
    print(out / path.name)


def benchmarks(args: argparse.Namespace) -> None:
  """Writes the evaluation data and prints what each file is for and where it is from."""
  from instructjax.data.public import benchmarks
  from instructjax.system.tables import Table, show

  with _placing(args, Path(args.out)) as folder:
    counts = benchmarks.write(folder)
  table_rows = []
  for data_set, count in counts:
    file = f"{Path(args.out) / data_set.name}.jsonl"
    table_rows.append((file, count, data_set.field, data_set.origin, data_set.about))
  columns = ("file", "rows", "for", "origin and licence", "what the copy has")
  show([Table("Real data for evaluations", columns, table_rows)])


# --- files ---


def infer(source: str, spelling: str = "", fields: str = "") -> str | None:
  """Returns the kind of record that a source holds, or None if nothing says so.

  The spelling says it first, then the mapping of fields, and then the first readable row.
  """
  return spellings.kind(spelling, fields) or sources.kind_of(source)


def _kind_and_spelling(
  source: str, args: argparse.Namespace
) -> tuple[str, Spelling | Layout | None]:
  """Returns the kind of record that a source holds, and how its rows are read.

  Raises:
    UserError: if nothing says what kind it is, or the options do not fit together.
  """
  kind = args.kind or infer(source, args.spelling, args.fields)
  if kind is None:
    hints = [sources.hint(part, "--") for part in sources.parts(source)]
    problems = [hint for hint in hints if hint]
    if problems:
      raise UserError("\n".join(problems))
    # No row is an object: reading them as any kind says of each what it is.
    kind = "prompt"
  return kind, spellings.choose(args.spelling, kind, args.fields, place="--")


def _each(
  source: str,
  kind: str,
  spelling: Spelling | Layout | None,
  args: argparse.Namespace,
  notes: Notes,
) -> Iterator[tuple[Record | None, list[str]]]:
  """Yields a record or the problems of a row at a time, as the options ask (`sources.each`)."""
  return sources.each(
    source,
    kind,
    spelling,
    notes=notes,
    place="--",
    empty_completions=args.empty_completions,
  )


def _say(notes: Notes, source: str) -> None:
  """Prints how a source was read and what was left out.

  It goes to stderr, as problems do, so that stdout has the good files alone.
  """
  for line in sentences(notes, source):
    print(line, file=sys.stderr)


def _read(file: str, args: argparse.Namespace) -> tuple[list, str]:
  """Returns the records of a file and their kind.

  Raises:
    UserError: for every problem, and for documents, which have no prompts.
  """
  kind, spelling = _kind_and_spelling(file, args)
  problems = Problems()
  notes = Notes()
  rows = []
  with counting(f"read {file}", f"{kind}s") as show:
    for record, row_problems in _each(file, kind, spelling, args, notes):
      for problem in row_problems:
        problems.add(problem)
      if record is not None:
        rows.append(record)
        show(len(rows))
  _say(notes, file)
  if problems.count:
    raise UserError("\n".join(problems.lines()))
  if kind == "text":
    raise UserError(f"{file}: holds documents without prompts; give {', '.join(KINDS)} files")
  return rows, kind


def _read_all(args: argparse.Namespace) -> tuple[list, set[str]]:
  """Returns the records of all files, and the kinds among them."""
  all_rows = []
  kinds = set()
  for file in args.files:
    rows, kind = _read(file, args)
    all_rows += rows
    kinds.add(kind)
  return all_rows, kinds


def _tokenizer(reference: str | None) -> Tokenizer | None:
  """Returns the tokenizer of --tokenizer. Without one, nothing slow is imported."""
  if not reference:
    return None
  from instructjax.data.tokens import tokenizers

  return tokenizers.by_reference(reference)


def _length_function(reference: str | None) -> tuple[Callable[[str], int], str]:
  """Returns the function that measures the length of a text, and the name of its unit."""
  if not reference:
    return lambda text: len(text.encode()), "UTF-8 bytes"
  from instructjax.data.tokens import tokenizers

  tokenizer = tokenizers.by_reference(reference)
  return lambda text: len(tokenizer.encode(text)), f"tokens of {reference}"


def _counted(count: int, noun: str) -> str:
  """Returns a number with its noun in the singular or the plural."""
  return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
