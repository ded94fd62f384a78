"""Questions on a passage: DROP, QuAC and SQuADv2, in the layouts of TFDS and the hub and our own.

DROP      {"passage", "question", "answers": [text or list of spans, ...]};
          hub: answers_spans; TFDS: answer, validated_answers
QuAC      {"title", "context", "questions": [...], "answers": [[text, ...], ...]}, a dialogue a
          row; hub: allenai/quac
SQuADv2   {"title", "context", "question", "answers": [text, ...]}, with no answers where the
          passage does not say; hub, TFDS: answers.text
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Scores

Row = Mapping[str, Any]
Spans = list[str]  # the parts of one answer of DROP: "Ann" and "Bob"

# What a model shall say where the passage has no answer, and the instructions of App. D.
UNKNOWN = "I don't know."
ABSENT = "Not in background."
DROP = Form(
  "Answer each question using information in the preceding passage.",
  glue="\n",
)
QUAC = Form(
  "Answer each question using information in the preceding background paragraph. "
  f'If there is not enough information provided, answer with "{UNKNOWN}"',
  earlier=True,
)
SQUAD = Form(
  "Answer each question using information in the preceding background paragraph. "
  f'If there is not enough information provided, answer with "{ABSENT}"',
  earlier=True,
)


def _object(row: Row, field: str) -> Row:
  value = row.get(field)
  if not isinstance(value, Mapping):
    raise RecordError(f"{field}: an object is expected, this is a {type(value).__name__}")
  return value


def _id(row: Row, field: str) -> str:
  return str(row.get(field) or "")


# --- DROP ---


def drop(row: Row) -> Passage:
  """Returns the passage of a row of DROP.

  The hub and TFDS do not say which spans belong together, so that there each is an answer of its
  own.
  """
  passage = rows.text(row, "passage").strip()
  kind = ""  # of the answer: number, date, span or spans
  gold = ""
  if "answers_spans" in row:
    spans = _object(row, "answers_spans")
    references = [[span] for span in rows.texts(spans, "spans")]
    # An exemplar names all spans, since they may be the parts of one answer.
    gold = ", ".join(dict.fromkeys(span for reference in references for span in reference))
    types = rows.texts(spans, "types") if "types" in spans else ()
    kind = types[0] if types else ""
  elif "validated_answers" in row:
    answers = [rows.text(row, "answer"), *rows.texts(row, "validated_answers")]
    references = [[answer] for answer in answers if answer]
  else:
    references = _own_references(row)
  if not references:
    raise RecordError("answers: empty; take the question out")
  # Annotators often agree; each answer is compared once.
  different = {tuple(reference): reference for reference in references}
  turn = Turn(
    _id(row, "query_id"),
    f"Question: {rows.text(row, 'question').strip()}\nAnswer:",
    gold or ", ".join(references[0]),
    list(different.values()),
    slices={"answer": kind} if kind else {},
  )
  return Passage(passage, passage, f"Passage: {passage}", (turn,))


def _own_references(row: Row) -> list[Spans]:
  """Returns the answers of our own layout, each as a list of spans."""
  value = row.get("answers")
  answers = value if isinstance(value, list) else []
  references = []
  for answer in answers:
    spans = [answer] if isinstance(answer, str) else answer
    is_list = isinstance(spans, list) and len(spans) > 0
    if not is_list or not all(isinstance(span, str) for span in spans):
      raise RecordError(
        'answers: a list is expected, of texts or of lists of spans: ["4", ["Ann", "Bob"]]'
      )
    references.append(spans)
  return references


def drop_score(text: str, data: Row) -> Scores:
  """Returns F1 and exact match in points (0 to 100), as DROP's own program counts them."""
  references = data["references"]
  return {
    "F1": 100 * text_metrics.drop_f1(text, references),
    "EM": 100 * text_metrics.drop_exact(text, references),
  }


# --- QuAC ---


def quac(row: Row) -> Passage:
  """Returns the passage of a dialogue of QuAC.

  "CANNOTANSWER" is an answer like any other in the data, and "I don't know." in prompts.
  """
  if "question" in row:
    raise RecordError(
      "question: a whole dialogue a row is expected; TFDS's quac shuffles the questions and loses "
      "their order, take the hub's (hub:allenai/quac@validation) or our own layout"
    )
  questions = rows.texts(row, "questions")
  answers = _quac_answers(row)
  # The answers that were given in the dialogue; `answers` has those of more annotators too.
  original: tuple[str, ...] = ()
  if "orig_answers" in row:
    original = rows.texts(_object(row, "orig_answers"), "texts")
  lengths_differ = len(questions) != len(answers) or (original and len(original) != len(questions))
  if lengths_differ or not all(answers):
    raise RecordError(
      f"answers: one list of texts for each of the {len(questions)} questions is expected"
    )
  # The hub's contexts end with the word CANNOTANSWER, which is no part of the text.
  context = rows.text(row, "context").strip().removesuffix(text_metrics.CANNOT).rstrip()
  title = _quac_title(row)
  head = f"PARAGRAPH: {context}"
  if title:
    head = f"TITLE: {title}\n\n{head}"
  ids = rows.texts(row, "turn_ids") if row.get("turn_ids") else [""] * len(questions)
  gold_answers = original or [several[0] for several in answers]
  turns = []
  for turn_id, question, gold, several in zip(ids, questions, gold_answers, answers, strict=True):
    references = text_metrics.quac_references(several)
    answerable = "no" if references == (text_metrics.CANNOT,) else "yes"
    turn = Turn(
      turn_id,
      f"Q: {question.strip()}\n\nA:",
      UNKNOWN if gold == text_metrics.CANNOT else gold.strip(),
      references,
      slices={"answerable": answerable},
    )
    turns.append(turn)
  # Two dialogues may be on the same section.
  dialogue = str(row.get("dialogue_id") or f"{head}\n\n{questions}")
  return Passage(dialogue, head, head, tuple(turns))


def _quac_title(row: Row) -> str:
  """Returns the title of the article and of its section."""
  titles = [row.get("wikipedia_page_title") or row.get("title"), row.get("section_title")]
  title = " - ".join(part for part in titles if isinstance(part, str) and part)
  if not title and row.get("title") != "":
    raise RecordError('title: missing; give the title of the article, or "" where nobody knows it')
  return title


def _quac_answers(row: Row) -> list[tuple[str, ...]]:
  """Returns the answers to each question."""
  value = row.get("answers")
  inner = value.get("texts") if isinstance(value, Mapping) else value
  if not isinstance(inner, Sequence) or isinstance(inner, str):
    raise RecordError("answers: a list of texts for each question is expected")
  return [rows.texts({"answers": several}, "answers") for several in inner]


def quac_score(text: str, data: Row) -> Scores:
  """Returns F1 in points (0 to 100); where there is no answer, all or nothing."""
  references = tuple(data["references"])
  if references == (text_metrics.CANNOT,):
    return {"F1": 100 * text_metrics.exact(text, [UNKNOWN])}
  return {"F1": 100 * text_metrics.quac_f1(text, references)}


# --- SQuAD ---


def squad(row: Row) -> Passage:
  """Returns the passage of a row of SQuADv2."""
  title = rows.text(row, "title").strip()
  context = rows.text(row, "context").strip()
  value = row.get("answers")
  if isinstance(value, Mapping):
    answers = rows.texts(value, "text")
  else:
    answers = rows.texts(row, "answers")
  references = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
  # Impossible questions may have plausible answers, which are wrong.
  if row.get("is_impossible") is True:
    references = ()
  answerable = "yes" if references else "no"
  references = references or (ABSENT,)
  turn = Turn(
    _id(row, "id"),
    f"Q: {rows.text(row, 'question').strip()}\n\nA:",
    references[0].strip(),
    references,
    slices={"answerable": answerable},
  )
  head = f"Title: {title}\n\nBackground: {context}"
  return Passage(head, head, head, (turn,))


def squad_score(text: str, data: Row) -> Scores:
  """Returns F1 and exact match in points (0 to 100).

  "Not in background." is compared like any other answer.
  """
  references = data["references"]
  return {
    "F1": 100 * text_metrics.f1(text, references),
    "EM": 100 * text_metrics.exact(text, references),
  }
