"""Label Studio: our tasks and answers as its JSON, and its JSON as ours.

A file of Label Studio is a list of tasks. A task has `data`, which its interface shows, and
`annotations`, one for each labeler. An annotation has regions: the answer to one question about
one object of the interface. Our ranking is a Ranker with a bucket for each rank, because several
outputs may share one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.label.answers import FLAGS, Answer, LabelerValue, Rating, Value
from instructjax.label.tasks import FACTS, Row, Task, facts, from_fields

# Label Studio knows labelers by their mail address. An id of ours that is none gets this end,
# a domain that cannot exist (RFC 2606).
NO_MAIL = "@labeler.invalid"
# The fields in which pairwise projects keep the two texts that they compare.
PAIRS = (
  ("left", "right"),
  ("text1", "text2"),
  ("answer1", "answer2"),
  ("output_1", "output_2"),
  ("chosen", "rejected"),
)
QUESTION = re.compile(r"(overall|flags|notes)_(\d+)")  # about one output
Region = Row

# --- from us to Label Studio ---


def to_rows(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[Row]:
  """Returns all tasks with their annotations, for the `interface` of the most outputs of a task."""
  counts = [len(task.completions) for task in tasks]
  k = max(counts, default=0)
  answers_by_task = defaultdict(list)
  for answer in answers:
    answers_by_task[answer.task].append(answer)
  rows = []
  for task in tasks:
    annotations = [_annotation(answer) for answer in answers_by_task[task]]
    rows.append({"data": _data(task, k), "annotations": annotations})
  return rows


def interface(kind: str, k: int) -> str:
  """Returns the labeling interface of the rows of `to_rows`, for at most k outputs, as XML."""
  lines = ["<View>", '  <Text name="prompt" value="$prompt"/>']
  if kind == "demonstration":
    lines.append(
      '  <TextArea name="demonstration" toName="prompt" rows="8" maxSubmissions="1" '
      'required="true"/>'
    )
  else:
    for i in range(1, k + 1):
      lines += _output_tags(i)
    lines.append('  <List name="items" value="$items" title="Outputs"/>')
    lines.append('  <Ranker name="ranks" toName="items">')
    lines += [f'    <Bucket name="rank_{i}" title="Rank {i}"/>' for i in range(1, k + 1)]
    lines.append("  </Ranker>")
  lines.append("</View>")
  return "".join(f"{line}\n" for line in lines)


def _output_tags(i: int) -> list[str]:
  """Returns the lines of the interface that show and rate output i, counted from 1."""
  return [
    f'  <Text name="output_{i}" value="$output_{i}"/>',
    f'  <Rating name="overall_{i}" toName="output_{i}" maxRating="7"/>',
    f'  <Choices name="flags_{i}" toName="output_{i}" choice="multiple">',
    *(f'    <Choice value="{flag}"/>' for flag in FLAGS),
    "  </Choices>",
    f'  <TextArea name="notes_{i}" toName="output_{i}" maxSubmissions="1"/>',
  ]


def _data(task: Task, k: int) -> Row:
  """Returns the fields of a task for the interface."""
  data: Row = {"prompt": task.prompt}
  data |= {name: value for name, value in facts(task).items() if value is not None}
  if not task.completions:
    return data
  # Each text is there twice: the Ranker orders `items`, and `output_i` is what is rated.
  data["items"] = []
  for i, text in enumerate(task.completions, start=1):
    data["items"].append({"id": str(i), "title": f"Output {i}", "body": text})
    data[f"output_{i}"] = text
  # Label Studio refuses a task that lacks a field of the interface.
  for i in range(len(task.completions) + 1, k + 1):
    data[f"output_{i}"] = ""
  return data


def _annotation(answer: Answer) -> Row:
  """Returns the annotation of an answer or a skip."""
  email = answer.labeler
  if "@" not in email:
    email += NO_MAIL
  regions = []
  if answer.value is not None:
    regions = _regions(answer.value, len(answer.task.completions))
  return {
    "completed_by": {"email": email},
    "was_cancelled": answer.value is None,
    "lead_time": round(answer.seconds, 1),  # seconds
    "result": regions,
  }


def _regions(value: Value, k: int) -> list[Region]:
  """Returns the regions of an answer about k outputs."""
  if "completion" in value:
    return [_text_region("demonstration", "prompt", value["completion"])]
  # Outputs are called "1" to "k", as in `items`.
  outputs = range(1, k + 1)
  buckets: dict[str, list[str]] = {f"rank_{rank}": [] for rank in outputs}
  for i in outputs:
    rank = value["ranks"][i - 1]
    buckets[f"rank_{rank}"].append(str(i))
  regions = [_region("ranker", "ranks", "items", buckets)]
  for i in outputs:
    regions += _rating_regions(i, value["ratings"][i - 1])
    note = value["notes"][i - 1]
    if note:
      regions.append(_text_region(f"notes_{i}", f"output_{i}", note))
  return regions


def _rating_regions(i: int, rating: Rating) -> list[Region]:
  """Returns the regions that rate output i, counted from 1."""
  if not rating:
    return []
  output = f"output_{i}"
  regions = [_region("rating", f"overall_{i}", output, rating["overall"])]
  flags = [flag for flag in FLAGS if rating[flag]]
  # There is no region for a question without a choice.
  if flags:
    regions.append(_region("choices", f"flags_{i}", output, flags))
  return regions


def _region(
  kind: str,
  question: str,
  subject: str,
  content: Any,
) -> Region:
  """Returns the region that answers a question (a control tag) about a subject (an object tag)."""
  return {
    "id": f"{question}-{subject}",
    "from_name": question,
    "to_name": subject,
    "type": kind,
    "value": {kind: content},
  }


def _text_region(
  question: str,
  subject: str,
  text: str,
) -> Region:
  region = _region("textarea", question, subject, None)
  # The value of a text area is called `text`, not `textarea`, and is a list.
  region["value"] = {"text": [text]}
  return region


# --- from Label Studio to us ---


def from_row(row: Any, kind: str) -> tuple[Task, list[LabelerValue], list[str]]:
  """Reads a task of ours, of a ranking without buckets, or of a pairwise comparison.

  Returns:
    The task, the answers of its labelers, and what was left out: a line for each annotation that
    is not finished.

  Raises:
    RecordError: the row is not a task.
    UserError: the task is not one of ours.
  """
  data = row.get("data", row) if isinstance(row, dict) else None
  if not isinstance(data, dict):
    raise RecordError("a task with data is expected")
  prompt = data.get("prompt", data.get("text"))
  texts, ids = [], []
  if kind != "demonstration":
    texts, ids = _outputs(data)
  task_facts = {name: data.get(name) for name in FACTS}
  task = from_fields(kind, prompt, texts, task_facts)
  values: list[LabelerValue] = []
  left_out: list[str] = []
  for number, annotation in enumerate(row.get("annotations") or []):
    value = None
    labeler = _labeler(annotation.get("completed_by"))
    # A skip is called cancelled there.
    if not annotation.get("was_cancelled"):
      regions = annotation.get("result") or []
      try:
        value = _value(regions, kind, ids)
      except RecordError as error:
        left_out.append(f"annotations[{number}]: {error} ({labeler})")
        continue
    values.append((labeler, value))
  return task, values, left_out


def _outputs(data: Row) -> tuple[list[Any], list[str]]:
  """Returns the texts that a task compares, and the ids by which a ranking refers to them."""
  items = data.get("items")
  if isinstance(items, list) and all(isinstance(item, dict) for item in items):
    texts = [item.get("body") for item in items]
    ids = [str(item.get("id")) for item in items]
    return texts, ids
  for pair in PAIRS:
    if all(isinstance(data.get(name), str) for name in pair):
      # The Pairwise tag says "left" or "right", whatever the fields are called.
      return [data[name] for name in pair], ["left", "right"]
  names = ["/".join(pair) for pair in PAIRS]
  spellings = " or ".join(names)
  raise RecordError(f"data.items: a list of {{id, body}} is expected, or two texts {spellings}")


def _labeler(user: Any) -> str:
  """Returns the id of a user: what we made a mail address of, a mail address, or a number."""
  name = user
  if isinstance(user, dict):
    name = user.get("email") or user.get("id")
  if name is None:
    name = "unnamed"
  return str(name).removesuffix(NO_MAIL)


def _value(
  regions: list[Region],
  kind: str,
  ids: list[str],
) -> Value:
  """Returns the value of an answer from the regions of an annotation."""
  if kind == "demonstration":
    texts: list[str] = []
    for region in _of_type("textarea", regions):
      texts += region["value"]["text"]
    return {"completion": "\n".join(texts)}
  ratings: list[Rating] = [{} for _ in ids]
  notes = [""] * len(ids)
  for region in regions:
    match = QUESTION.fullmatch(str(region.get("from_name")))
    # Projects of others may ask more questions, which we do not read.
    if not match:
      continue
    question, number = match[1], int(match[2])
    if not 1 <= number <= len(ids):
      continue
    value = region["value"]
    if question == "overall":
      ratings[number - 1]["overall"] = value["rating"]
    elif question == "flags":
      flags = dict.fromkeys(value["choices"], True)
      ratings[number - 1] |= flags
    else:
      notes[number - 1] = "\n".join(value["text"])
  return {"ranks": _ranks(regions, ids), "ratings": ratings, "notes": notes}


def _of_type(kind: str, regions: list[Region]) -> list[Region]:
  return [region for region in regions if region.get("type") == kind]


def _ranks(regions: list[Region], ids: list[str]) -> list[int]:
  """Returns the rank of each output, from a Ranker or else from a Pairwise choice."""
  rankers = _of_type("ranker", regions)
  choices = _of_type("pairwise", regions)
  ranks: dict[str, int] = {}
  if rankers:
    ranks = _ranks_by_id(rankers[0]["value"]["ranker"])
  elif choices:
    # Without a choice the two are tied.
    selected = choices[0]["value"].get("selected")
    ranks = {
      "left": 2 if selected == "right" else 1,
      "right": 2 if selected == "left" else 1,
    }
  missing = [output for output in ids if output not in ranks]
  if missing:
    raise RecordError(f"output {missing[0]} has no rank, so it is not finished")
  return [ranks[output] for output in ids]


def _ranks_by_id(order: Any) -> dict[str, int]:
  """Returns ranks by output id, from the value of a Ranker: a list, or lists by bucket."""
  # A Ranker without buckets gives one list, in some versions under the name of its tag.
  if isinstance(order, dict) and len(order) == 1:
    (order,) = order.values()
  if not isinstance(order, dict):
    return {str(output): rank for rank, output in enumerate(order, start=1)}
  ranks: dict[str, int] = {}
  for name, outputs in order.items():
    if re.fullmatch(r"rank_\d+", name):
      rank = int(name.removeprefix("rank_"))
      ranks |= dict.fromkeys(map(str, outputs), rank)
  return ranks
