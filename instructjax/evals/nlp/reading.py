"""Questions on a passage: DROP, QuAC and SQuADv2, in the layouts of TFDS and the hub and in our
own.

DROP      {"passage", "question", "answers": [text or list of spans, ...]}; hub: answers_spans; TFDS: answer, validated_answers
QuAC      {"title", "context", "questions": [...], "answers": [[text, ...], ...]}, a dialogue a row; hub: allenai/quac
SQuADv2   {"title", "context", "question", "answers": [text, ...]}, none where the passage does not say; hub, TFDS: answers.text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Scores

Row = Mapping[str, Any]
DROP = Form("Answer each question using information in the preceding passage.", "\n")
QUAC = Form(
  "Answer each question using information in the preceding background paragraph. If there is not "
  "enough information provided, "
  'answer with "I don\'t know."',
  earlier=True,
)
SQUAD = Form(
  "Answer each question using information in the preceding background paragraph. If there is not "
  "enough information provided, "
  'answer with "Not in background."',
  earlier=True,
)
UNKNOWN = "I don't know."
ABSENT = "Not in background."


def drop(row: Row) -> Passage:
  """A row of DROP.  The hub and TFDS do not say which spans belong together: there each is an
  answer of its own.
  """
  passage = rows.text(row, "passage").strip()
  if "answers_spans" in row:
    inner = _inside(row, "answers_spans")
    references = [[one] for one in rows.texts(inner, "spans")]
    kind = [*rows.texts(inner, "types"), ""][0] if "types" in inner else ""
  elif "validated_answers" in row:
    references, kind = (
      [[one] for one in (rows.text(row, "answer"), *rows.texts(row, "validated_answers")) if one],
      "",
    )
  else:
    references, kind = _spans(row), ""
  if not references:
    raise RecordError("answers: empty; take the question out")
  shown = (
    ", ".join(dict.fromkeys(one for spans in references for one in spans))
    if "answers_spans" in row
    else ""
  )
  turn = Turn(
    _name(row, "query_id"),
    f"Question: {rows.text(row, 'question').strip()}\nAnswer:",
    shown or ", ".join(references[0]),
    list({tuple(spans): spans for spans in references}.values()),
    slices={"answer": kind} if kind else {},
  )
  return Passage(passage, passage, f"Passage: {passage}", (turn,))


def _spans(row: Row) -> list[list[str]]:
  value = row.get("answers")
  found = (
    [[one] if isinstance(one, str) else one for one in value] if isinstance(value, list) else []
  )
  if not all(
    isinstance(one, list) and one and all(isinstance(span, str) for span in one) for one in found
  ):
    raise RecordError(
      'answers: a list is expected, of texts or of lists of spans: ["4", ["Ann", "Bob"]]'
    )
  return found


def drop_score(text: str, data: Row) -> Scores:
  """F1 and exact match in points."""
  references = data["references"]
  return {
    "F1": 100 * text_metrics.drop_f1(text, references),
    "EM": 100 * text_metrics.drop_exact(text, references),
  }


def quac(row: Row) -> Passage:
  """A dialogue of QuAC; "CANNOTANSWER" is an answer like any other in the data, and "I don't know."
  in prompts.
  """
  if "question" in row:
    raise RecordError(
      "question: a whole dialogue a row is expected; TFDS's quac shuffles the questions and loses "
      "their order, take the hub's "
      "(hub:allenai/quac@validation) or our own layout"
    )
  questions = rows.texts(row, "questions")
  told, first = _answers(row), []
  if "orig_answers" in row:
    first = list(rows.texts(_inside(row, "orig_answers"), "texts"))
  if not len(questions) == len(told) or not all(told) or (first and len(first) != len(questions)):
    raise RecordError(
      f"answers: one list of texts for each of the {len(questions)} questions is expected"
    )
  context = rows.text(row, "context").strip().removesuffix(text_metrics.CANNOT).rstrip()
  titles = [row.get("wikipedia_page_title") or row.get("title"), row.get("section_title")]
  title = " - ".join(one for one in titles if isinstance(one, str) and one)
  if not title and row.get("title") != "":
    raise RecordError('title: missing; give the title of the article, or "" where nobody knows it')
  ids = row.get("turn_ids")
  names = rows.texts(row, "turn_ids") if ids else [""] * len(questions)
  known = lambda text: UNKNOWN if text == text_metrics.CANNOT else text.strip()
  turns = [
    Turn(
      name,
      f"Q: {question.strip()}\n\nA:",
      known((first or [one[0] for one in told])[at]),
      (counted := text_metrics.quac_references(told[at])),
      slices={"answerable": "no" if counted == (text_metrics.CANNOT,) else "yes"},
    )
    for at, (name, question) in enumerate(zip(names, questions, strict=True))
  ]
  head = (f"TITLE: {title}\n\n" if title else "") + f"PARAGRAPH: {context}"
  dialogue = str(row.get("dialogue_id") or f"{head}\n\n{questions}")
  return Passage(dialogue, head, head, tuple(turns))


def _answers(row: Row) -> list[tuple[str, ...]]:
  value = row.get("answers")
  inner = value.get("texts") if isinstance(value, Mapping) else value
  if not isinstance(inner, Sequence) or isinstance(inner, str):
    raise RecordError("answers: a list of texts for each question is expected")
  return [rows.texts({"answers": one}, "answers") for one in inner]


def quac_score(text: str, data: Row) -> Scores:
  """F1 in points; where there is no answer, all or nothing."""
  references = tuple(data["references"])
  if references == (text_metrics.CANNOT,):
    return {"F1": 100 * text_metrics.exact(text, [UNKNOWN])}
  return {"F1": 100 * text_metrics.quac_f1(text, references)}


def squad(row: Row) -> Passage:
  """A row of SQuADv2."""
  title, context = rows.text(row, "title").strip(), rows.text(row, "context").strip()
  value = row.get("answers")
  found = rows.texts(value, "text") if isinstance(value, Mapping) else rows.texts(row, "answers")
  references = (
    tuple(dict.fromkeys(one for one in found if one.strip()))
    if row.get("is_impossible") is not True
    else ()
  )
  slices = {"answerable": "yes" if references else "no"}
  references = references or (ABSENT,)
  turn = Turn(
    _name(row, "id"),
    f"Q: {rows.text(row, 'question').strip()}\n\nA:",
    references[0].strip(),
    references,
    slices=slices,
  )
  head = f"Title: {title}\n\nBackground: {context}"
  return Passage(head, head, head, (turn,))


def squad_score(text: str, data: Row) -> Scores:
  """F1 and exact match in points; "Not in background." is compared like any other answer."""
  references = data["references"]
  return {
    "F1": 100 * text_metrics.f1(text, references),
    "EM": 100 * text_metrics.exact(text, references),
  }


def _inside(row: Row, field: str) -> Row:
  value = row.get(field)
  if not isinstance(value, Mapping):
    raise RecordError(f"{field}: an object is expected, this is a {type(value).__name__}")
  return value


def _name(row: Row, field: str) -> str:
  return str(row.get(field) or "")
