"""What a reward model orders: prompts with answers of which some are better than others.

Files are comparisons of any spelling that docs/data.md has, and the layouts of RewardBench (Lambert
et al. 2024), of its prior sets, and of RewardBench 2 (Malik et al. 2025). They are rows of a file,
nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from instructjax.data.records import preferences, sources, spellings
from instructjax.data.records.records import Comparison, RecordError
from instructjax.data.records.validation import chat, transcript
from instructjax.errors import UserError
from instructjax.evals import rows
from instructjax.evals.reward import bench


class Case(NamedTuple):
  """Answers to one prompt.

  id       a name that is unique within its file
  prompt   the prompt; a chat is the transcript that ends where the reply begins
  texts    the answers
  ranks    as many numbers, 1 the best; equal ranks are ties
  pairs    (better, worse) places of answers, where labels of pairs are no ranking
  groups   names of groups and the value of the case in each: {"subset": "hep-cpp"}
  """

  id: str
  prompt: str
  texts: tuple[str, ...]
  ranks: tuple[int, ...]
  groups: Mapping[str, str]
  pairs: tuple[tuple[int, int], ...] = ()


def comparisons(source: str, spelling: str, fields: str, folder: str | None) -> list[Case]:
  """Returns the comparisons of a file, by source, use case, labeler and number of answers.

  Raises:
    UserError: if the file or a record is wrong.
  """
  spell = spellings.choose(spelling, "comparison", fields, place="config.reward.")
  records = sources.load(source, "comparison", spell, folder=folder, place="config.reward.")
  return [_case_of_record(number, record) for number, record in enumerate(records, 1)]


def _case_of_record(number: int, record: Comparison) -> Case:
  groups = {"K": str(len(record.completions))}
  for name in ("source", "use_case", "labeler"):
    value = getattr(record, name)
    if value:
      groups["subset" if name == "source" else name] = value
  # Several labelers may have ranked the same prompt under one id, so that ids are numbers.
  pairs = ()
  if record.pairs:
    better, worse = preferences.weights(record).nonzero()
    pairs = tuple(zip(better.tolist(), worse.tolist(), strict=True))
  return Case(str(number), record.prompt, record.completions, record.ranks, groups, pairs)


def rewardbench(source: str, folder: str | None) -> list[Case]:
  """Returns the pairs of RewardBench: prompt, chosen, rejected and subset.

  Raises:
    UserError: for a subset that is in none of its sections, and for what else is wrong.
  """

  def convert(row: Mapping[str, Any]) -> Case:
    subset = rows.text(row, "subset")
    if subset not in bench.PROMPTS:
      raise RecordError(
        f"subset: {subset!r} is none of RewardBench's: {', '.join(bench.PROMPTS)}; read a file of "
        "your own with config.reward.comparisons"
      )
    return _pair(row, {"subset": subset})

  return _numbered(rows.read(source, convert, folder=folder))


def prior_sets(text: str, folder: str | None) -> list[Case]:
  """Returns the pairs of the prior sets, of files that are written "shp=FILE; summarize=FILE".

  Raises:
    UserError: for a name that is none of the four sets, and for what else is wrong.
  """
  cases: list[Case] = []
  for name, source in rows.named(text, "").items():
    if name not in bench.PRIOR:
      raise UserError(
        f"config.reward.prior: {name!r} is no prior set; name the files {', '.join(bench.PRIOR)}"
      )
    cases += rows.read(source, lambda row, name=name: _pair(row, {"subset": name}), folder=folder)
  return _numbered(cases)


def rewardbench2(source: str, folder: str | None) -> list[Case]:
  """Returns the cases of RewardBench 2: prompt, lists chosen and rejected, num_correct, subset, id.

  Raises:
    UserError: for lists that do not fit num_correct, an id of Ties that names no prompt, and for
      what else is wrong.
  """

  def convert(row: Mapping[str, Any]) -> Case:
    chosen, rejected = rows.texts(row, "chosen"), rows.texts(row, "rejected")
    for name, texts in (("chosen", chosen), ("rejected", rejected)):
      if not texts:
        raise RecordError(f"{name}: at least one text is expected")
    correct = len(chosen)
    if row.get("num_correct", correct) != correct:
      raise RecordError(f"num_correct: {row['num_correct']}, but chosen has {correct} texts")
    subset = rows.text(row, "subset")
    id_ = str(row.get("id", ""))
    if subset.lower() == bench.TIES:
      kind, _, number = id_.partition(":")
      if kind not in bench.TIE_KINDS or not number.isdigit():
        raise RecordError(f"id: {id_!r}, but the subset Ties has ref:NUMBER and tied:NUMBER")
    ranks = (1,) * correct + (2,) * len(rejected)
    return Case(id_, _prompt(row), chosen + rejected, ranks, {"subset": subset})

  cases = rows.read(source, convert, folder=folder)
  # Ids of Ties name its prompts; the others may repeat those of another subset.
  return [case._replace(id=f"{n} {case.id}".strip()) for n, case in enumerate(cases, 1)]


def _numbered(cases: Sequence[Case]) -> list[Case]:
  return [case._replace(id=str(number)) for number, case in enumerate(cases, 1)]


def _pair(row: Mapping[str, Any], groups: Mapping[str, str]) -> Case:
  """Returns the case of a row of prompt, chosen and rejected, each a text or messages."""
  texts = (_reply(row, "chosen"), _reply(row, "rejected"))
  return Case("", _prompt(row), texts, (1, 2), groups)


def _prompt(row: Mapping[str, Any]) -> str:
  value = row.get("prompt")
  if isinstance(value, list):
    return transcript(chat("prompt", value))
  return rows.text(row, "prompt")


def _reply(row: Mapping[str, Any], name: str) -> str:
  """Returns a reply, which is the last message of a chat, and may be empty as models may be."""
  value = row.get(name)
  if isinstance(value, list):
    return chat(name, value)[-1]["content"]
  if isinstance(value, str):
    return value
  return rows.text(row, name)  # which says what is wrong with it
