"""Tasks and answers as files: our records, everything that was said, and the JSON of Label Studio
and Argilla.

Each format is a pair of functions: `to_...` gives rows for JSON, `from_...` takes them back as
tasks and answers. Label Studio: tasks with `annotations`; the ranking is a Ranker with a bucket
for each rank, so several outputs may share one. Argilla: the records that
`dataset.records.to_json` writes and `from_json` reads (version 2).
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.records import records, validation
from instructjax.data.records.records import Comparison, Demonstration, RecordError
from instructjax.errors import UserError
from instructjax.label.tasks import FACTS, FLAGS, Answer, Task, checked, facts, present, unanswered

Loaded = tuple[list[Task], list[Answer]]
Said = list[tuple[str, dict[str, Any] | None]]  # labelers and their answers; None is a skip
NOBODY = "@labeler.invalid"  # Label Studio knows labelers by their mail address
PAIRS = [
  ("left", "right"),
  ("text1", "text2"),
  ("answer1", "answer2"),
  ("output_1", "output_2"),
  ("chosen", "rejected"),
]


def comparisons(answers: Iterable[Answer]) -> list[Comparison]:
  """A record for each ranking; skips and notes have no place in one."""
  found = []
  for answer in answers:
    if answer.value is not None:
      ratings, ranks = tuple(answer.value["ratings"]), tuple(answer.value["ranks"])
      known = facts(answer.task) | {
        "labeler": answer.labeler,
        "ratings": ratings if any(ratings) else None,
      }
      known |= {"sources": answer.task.sources or None, "turns": answer.task.turns}
      found.append(Comparison(answer.task.prompt, answer.task.completions, ranks, **known))
  return found


def demonstrations(answers: Iterable[Answer]) -> list[Demonstration]:
  """A record for each demonstration."""
  given = [
    (answer.task, answer.value["completion"]) for answer in answers if answer.value is not None
  ]
  return [Demonstration(task.prompt, text, **facts(task), turns=task.turns) for task, text in given]


def from_records(path: Path, kind: str) -> Loaded:
  """Labeled records: comparisons with their labeler, or demonstrations.  Raises UserError with the
  line of every problem.
  """
  tasks, answers, problems = [], [], []
  for line, record in enumerate(
    records.read(path, "demonstration" if kind == "demonstration" else "comparison"), 1
  ):
    if isinstance(record, Comparison):
      k = len(record.completions)
      value = {
        "ranks": list(record.ranks),
        "ratings": [dict(r) for r in record.ratings or [{}] * k],
        "notes": [""] * k,
      }
      answers.append(Answer(unanswered(record), record.labeler or "unnamed", value))
    else:
      answers.append(Answer(unanswered(record), "unnamed", {"completion": record.completion}))
    tasks.append(unanswered(record))
    try:
      checked(kind, answers[-1].value, len(tasks[-1].completions))
    except UserError as error:
      problems.append(f"{path}:{line}: {error}")
  records.report(problems)
  return tasks, answers


def to_answers(answers: Iterable[Answer]) -> list[dict[str, Any]]:
  """Everything: skips and their reasons, notes, the order shown, the seconds, the sources."""
  rows = []
  for answer in answers:
    said = {"skipped": answer.reason} if answer.value is None else answer.value
    how = {"labeler": answer.labeler, "shown": answer.shown, "seconds": round(answer.seconds, 1)}
    rows.append(present(answer.task) | how | said)
  return rows


def load(path: str | Path, kind: str, form: str) -> Loaded:
  """Tasks and answers of a file.  Raises UserError where it cannot be read or a row is bad."""
  path = Path(path)
  if form == "records":
    return from_records(path, kind)
  elsewhere(kind, form, path)
  try:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
  except FileNotFoundError:
    raise UserError(f"{path}: no such file") from None
  except RecursionError:
    raise UserError(
      f"{path}: nested too deeply; give the file that the tool exported as JSON"
    ) from None
  except (OSError, ValueError) as error:
    raise UserError(
      f"{path}: not JSON ({error}); give the file that the tool exported as JSON"
    ) from None
  if not isinstance(rows, list) or not rows:
    raise UserError(
      f"{path}: a list of {'tasks' if form == 'labelstudio' else 'records'} is expected"
    )
  read = {"labelstudio": from_labelstudio, "argilla": from_argilla}[form]
  tasks, answers, problems = [], [], []
  for at, row in enumerate(rows):
    try:
      task, said = read(row, kind)
      for _, value in said:
        if value is not None:
          checked(kind, value, len(task.completions))
      tasks.append(task)
      answers += [
        Answer(task, labeler, value, "" if value else "skipped elsewhere")
        for labeler, value in said
      ]
    except (UserError, RecordError) as error:
      lines = [line for part in error.args for line in str(part).split("\n")]
      problems += [f"{path}: item {at}: {validation.printable(line)}" for line in lines]
    except (KeyError, TypeError, AttributeError, IndexError, json.JSONDecodeError) as error:
      what = validation.printable(f"not as {form} writes it ({type(error).__name__}: {error})")
      problems.append(f"{path}: item {at}: {what}")
  records.report(problems)
  return tasks, answers


def elsewhere(kind: str, form: str, path: Path) -> None:
  """Raises UserError for tasks whose ratings another tool has no form for."""
  if kind == "continuation":
    raise UserError(
      f"{path}, --format={form}: there is no form of {form} for continuations; take "
      "--format=records"
    )


def _task(kind: str, prompt: Any, texts: list[Any], known: dict[str, Any]) -> Task:
  """A task out of what another tool wrote, if it is one of ours.  Raises UserError."""
  row = {"prompt": prompt} | {
    name: value for name, value in known.items() if value not in (None, "")
  }
  if kind == "demonstration":
    (prompted,) = records.parse([row], "prompt", name="task")
    return unanswered(prompted)
  (ranked,) = records.parse(
    [row | {"completions": texts, "ranks": [1] * len(texts)}], "comparison", name="task"
  )
  return unanswered(ranked)


# --- Label Studio ---


def to_labelstudio(
  tasks: Sequence[Task], answers: Sequence[Answer], k: int | None = None
) -> list[dict[str, Any]]:
  """Tasks with their annotations; `labelstudio_config` is the interface that shows them."""
  k = k or max((len(task.completions) for task in tasks), default=0)
  by_task = defaultdict(list)
  for answer in answers:
    by_task[answer.task].append(answer)
  rows = []
  for task in tasks:
    data = {"prompt": task.prompt} | {
      name: value for name, value in facts(task).items() if value is not None
    }
    if task.completions:
      data["items"] = [
        {"id": str(i), "title": f"Output {i}", "body": text}
        for i, text in enumerate(task.completions, 1)
      ]
      data |= {
        f"output_{i}": task.completions[i - 1] if i <= len(task.completions) else ""
        for i in range(1, k + 1)
      }
    annotations = [
      {
        "completed_by": {"email": _mail(a.labeler)},
        "was_cancelled": a.value is None,
        "lead_time": round(a.seconds, 1),
        "result": _regions(a.value, len(task.completions)) if a.value else [],
      }
      for a in by_task[task]
    ]
    rows.append({"data": data, "annotations": annotations})
  return rows


def _mail(labeler: str) -> str:
  return labeler if "@" in labeler else labeler + NOBODY


def _regions(value: dict[str, Any], k: int) -> list[dict[str, Any]]:
  one = lambda kind, name, to, content: {
    "id": f"{name}-{to}",
    "from_name": name,
    "to_name": to,
    "type": kind,
    "value": {kind: content},
  }
  text = lambda name, to, content: one("textarea", name, to, None) | {"value": {"text": [content]}}
  if "completion" in value:
    return [text("demonstration", "prompt", value["completion"])]
  buckets = {
    f"rank_{r}": [str(i + 1) for i in range(k) if value["ranks"][i] == r] for r in range(1, k + 1)
  }
  found = [one("ranker", "ranks", "items", buckets)]
  for i, (rating, note) in enumerate(zip(value["ratings"], value["notes"], strict=True), 1):
    if rating:
      found.append(one("rating", f"overall_{i}", f"output_{i}", rating["overall"]))
      flags = [flag for flag in FLAGS if rating[flag]]
      found += [one("choices", f"flags_{i}", f"output_{i}", flags)] if flags else []
    found += [text(f"notes_{i}", f"output_{i}", note)] if note else []
  return found


def labelstudio_config(kind: str, k: int) -> str:
  """The labeling interface of the tasks that `to_labelstudio` writes, for at most k outputs."""
  if kind == "demonstration":
    inner = '  <TextArea name="demonstration" toName="prompt" rows="8" maxSubmissions="1" required="true"/>\n'
  else:
    choices = "".join(f'    <Choice value="{flag}"/>\n' for flag in FLAGS)
    inner = "".join(
      f'  <Text name="output_{i}" value="$output_{i}"/>\n  <Rating name="overall_{i}" '
      f'toName="output_{i}" maxRating="7"/>\n'
      f'  <Choices name="flags_{i}" toName="output_{i}" choice="multiple">\n{choices}  </Choices>\n'
      f'  <TextArea name="notes_{i}" toName="output_{i}" maxSubmissions="1"/>\n'
      for i in range(1, k + 1)
    )
    buckets = "".join(f'    <Bucket name="rank_{i}" title="Rank {i}"/>\n' for i in range(1, k + 1))
    inner += '  <List name="items" value="$items" title="Outputs"/>\n'
    inner += f'  <Ranker name="ranks" toName="items">\n{buckets}  </Ranker>\n'
  return f'<View>\n  <Text name="prompt" value="$prompt"/>\n{inner}</View>\n'


def from_labelstudio(row: Any, kind: str) -> tuple[Task, Said]:
  """A task of ours, of a ranking without buckets, or of a pairwise comparison of two texts."""
  data = row.get("data", row) if isinstance(row, dict) else None
  if not isinstance(data, dict):
    raise RecordError("a task with data is expected")
  prompt = data.get("prompt", data.get("text"))
  items = data.get("items")
  if kind == "demonstration":
    texts, ids = [], []
  elif isinstance(items, list) and all(isinstance(item, dict) for item in items):
    texts, ids = [item.get("body") for item in items], [str(item.get("id")) for item in items]
  else:
    pair = next(
      (pair for pair in PAIRS if all(isinstance(data.get(name), str) for name in pair)), None
    )
    if pair is None:
      raise RecordError(
        "data.items: a list of {id, body} is expected, or two texts "
        + " or ".join(map("/".join, PAIRS))
      )
    texts, ids = [data[name] for name in pair], ["left", "right"]
  task = _task(kind, prompt, texts, {name: data.get(name) for name in FACTS})
  said: Said = []
  for annotation in row.get("annotations") or []:
    value = (
      None if annotation.get("was_cancelled") else _value(annotation.get("result") or [], kind, ids)
    )
    said.append((_labeler(annotation.get("completed_by")), value))
  return task, said


def _labeler(user: Any) -> str:
  """The name of who annotated: a mail address, or the number of a user."""
  name = user.get("email") or user.get("id") if isinstance(user, dict) else user
  return str(name if name is not None else "unnamed").removesuffix(NOBODY)


def _value(result: list[dict[str, Any]], kind: str, ids: list[str]) -> dict[str, Any]:
  """An answer out of the regions of an annotation."""
  by_kind = lambda wanted: [region for region in result if region.get("type") == wanted]
  if kind == "demonstration":
    texts = [text for region in by_kind("textarea") for text in region["value"]["text"]]
    return {"completion": "\n".join(texts)}
  ratings: list[dict[str, Any]] = [{} for _ in ids]
  notes = [""] * len(ids)
  for region in result:
    found = re.fullmatch(r"(overall|flags|notes)_(\d+)", str(region.get("from_name")))
    if found and 1 <= int(found[2]) <= len(ids):
      at, value = int(found[2]) - 1, region["value"]
      if found[1] == "overall":
        ratings[at]["overall"] = value["rating"]
      elif found[1] == "flags":
        ratings[at] |= dict.fromkeys(value["choices"], True)
      else:
        notes[at] = "\n".join(value["text"])
  return {
    "ranks": _ranks(by_kind("ranker"), by_kind("pairwise"), ids),
    "ratings": ratings,
    "notes": notes,
  }


def _ranks(
  ranker: list[dict[str, Any]], pairwise: list[dict[str, Any]], ids: list[str]
) -> list[int]:
  rank: dict[str, int] = {}
  if ranker:
    order = ranker[0]["value"]["ranker"]
    if (
      isinstance(order, dict) and len(order) == 1
    ):  # a list without buckets, under the name of its tag
      (order,) = order.values()
    if isinstance(order, dict):
      buckets = sorted(
        (int(name.split("_")[1]), part)
        for name, part in order.items()
        if re.fullmatch(r"rank_\d+", name)
      )
      rank = {str(one): at for at, part in buckets for one in part}
    else:
      rank = {str(one): at for at, one in enumerate(order, 1)}
  elif pairwise:
    selected = pairwise[0]["value"].get("selected")
    rank = {"left": 1 + (selected == "right"), "right": 1 + (selected == "left")}
  missing = [one for one in ids if one not in rank]
  if missing:
    raise RecordError(
      f"annotations: output {missing[0]} has no rank; finish the annotation or take it out"
    )
  return [rank[one] for one in ids]


# --- Argilla ---


def to_argilla(tasks: Sequence[Task], answers: Sequence[Answer]) -> list[dict[str, Any]]:
  """Records with responses; labelers, which must be UUIDs there, are named in the metadata."""
  by_task = defaultdict(list)
  for answer in answers:
    if answer.value is not None:
      by_task[answer.task].append(answer)
  rows = []
  for at, task in enumerate(tasks):
    fields = {"prompt": task.prompt} | {
      f"response_{i}": text for i, text in enumerate(task.completions, 1)
    }
    known = {
      name: value for name, value in facts(task).items() if value is not None and name != "id"
    }
    metadata: dict[str, Any] = {
      name: value if isinstance(value, str) else json.dumps(value) for name, value in known.items()
    }
    responses = defaultdict(list)
    for answer in by_task[task]:
      for question, value in _questions(answer.value or {}).items():
        responses[question].append({"value": value, "user_id": user_id(answer.labeler)})
    if by_task[task]:
      metadata["labelers"] = [answer.labeler for answer in by_task[task]]
    rows.append(
      {
        "id": task.id or f"task-{at + 1}",
        "fields": fields,
        "metadata": metadata,
        "suggestions": {},
        "responses": dict(responses),
        "vectors": {},
        "status": "completed" if by_task[task] else "pending",
      }
    )
  return rows


def user_id(labeler: str) -> str:
  """The labeler's UUID, or one made of the name."""
  try:
    return str(uuid.UUID(labeler))
  except ValueError:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"labeler:{labeler}"))


def _questions(value: dict[str, Any]) -> dict[str, Any]:
  if "completion" in value:
    return {"demonstration": value["completion"]}
  found: dict[str, Any] = {
    "ranking": [
      {"value": f"response_{i}", "rank": rank} for i, rank in enumerate(value["ranks"], 1)
    ]
  }
  for i, (rating, note) in enumerate(zip(value["ratings"], value["notes"], strict=True), 1):
    if rating:
      found[f"overall_{i}"] = rating["overall"]
      found[f"flags_{i}"] = [flag for flag in FLAGS if rating[flag]]
    if note:
      found[f"notes_{i}"] = note
  return found


def from_argilla(row: Any, kind: str) -> tuple[Task, Said]:
  """A record with a prompt and responses; the ranking is the question named so, with ranks or as an
  ordered list.
  """
  fields = row.get("fields") if isinstance(row, dict) else None
  if not isinstance(fields, dict):
    raise RecordError("a record with fields is expected")
  prompt = next(
    (fields[name] for name in ("prompt", "instruction", "input") if fields.get(name)), ""
  )
  names = [
    name
    for name, text in fields.items()
    if re.fullmatch(r"(response|completion|output)[-_]?\d+", name) and text
  ]
  texts = [fields[name] for name in names] if kind == "comparison" else []
  metadata = row.get("metadata") or {}
  known = {name: metadata.get(name) for name in FACTS if name != "id"}
  known |= {
    name: json.loads(metadata[name])
    for name in ("consent", "annotations")
    if isinstance(known[name], str)
  }
  given = row.get("id")
  named = given if given and not re.fullmatch(r"task-\d+", str(given)) else None
  labelers = {user_id(name): name for name in metadata.get("labelers", [])}
  by_user: dict[str, dict[str, Any]] = defaultdict(dict)
  for question, responses in (row.get("responses") or {}).items():
    for response in responses:
      by_user[str(response["user_id"])][question] = response["value"]
  main = "demonstration" if kind == "demonstration" else "ranking"
  finished = {user: questions for user, questions in by_user.items() if main in questions}
  said: Said = [
    (labelers.get(user, user), _argilla_value(one, kind, names)) for user, one in finished.items()
  ]
  return _task(kind, prompt, texts, known | {"id": named}), said


def _argilla_value(questions: dict[str, Any], kind: str, names: list[str]) -> dict[str, Any]:
  if kind == "demonstration":
    return {"completion": questions["demonstration"]}
  ranking = questions["ranking"]
  rank = {
    one["value"] if isinstance(one, dict) else one: one.get("rank", at)
    if isinstance(one, dict)
    else at
    for at, one in enumerate(ranking, 1)
  }
  missing = [name for name in names if name not in rank]
  if missing:
    raise RecordError(f"responses.ranking: {missing[0]} has no rank")
  ratings = []
  for i in range(1, len(names) + 1):
    overall = questions.get(f"overall_{i}")
    ratings.append(
      {"overall": overall} | dict.fromkeys(questions.get(f"flags_{i}", []), True) if overall else {}
    )
  notes = [questions.get(f"notes_{i}", "") for i in range(1, len(names) + 1)]
  dense = {rank: at for at, rank in enumerate(sorted({rank[name] for name in names}), 1)}
  return {"ranks": [dense[rank[name]] for name in names], "ratings": ratings, "notes": notes}
