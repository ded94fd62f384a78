"""Public collections of answers side by side: SHP, WebGPT, PandaLM, FineGrainedRLHF and others.

A row has two answers or more to one prompt, and who or what decided between them. Each function
reads the rows of one layout, as those of `formats` do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from instructjax.data.records import formats, labels
from instructjax.data.records.feedback import ranked_fields
from instructjax.data.records.formats import lookup
from instructjax.data.records.schemas import RecordError

Row = dict[str, Any]


def shp(row: Row, kind: str) -> Row:
  """Reads SHP (Ethayarajh et al. 2022): a post and two comments; labels is 1 for A, 0 for B."""
  prompt = lookup(row, "history")
  texts = [lookup(row, "human_ref_A"), lookup(row, "human_ref_B")]
  better = labels.preferred(lookup(row, "labels"), ("A", "B"), ("1", "0"), "labels")
  return ranked_fields(kind, prompt, texts, labels.of_votes([better], 2))


def webgpt(row: Row, kind: str) -> Row:
  """Reads WebGPT's comparisons (Nakano et al. 2021): the higher score is the better answer."""
  prompt = lookup(
    row, "question.full_text" if isinstance(row.get("question"), dict) else "question"
  )
  texts = [lookup(row, f"answer_{index}") for index in range(2)]
  scores = [labels.number(lookup(row, f"score_{index}"), f"score_{index}") for index in range(2)]
  return ranked_fields(kind, prompt, texts, labels.ranks(scores))


def pandalm(row: Row, kind: str) -> Row:
  """Reads PandaLM (Wang et al. 2023): 1 and 2 are the responses, 0 a tie, of each annotator.

  The response that more annotators chose is the better one.
  """
  prompt = formats.task_prompt(row, "input")
  texts = [lookup(row, "response1"), lookup(row, "response2")]
  annotators = [name for name in row if name.startswith("annotator")]
  if not annotators:
    raise RecordError("annotator1: missing; the choice of one annotator or more is expected")
  names = ("response1", "response2")
  choices = [labels.preferred(row[name], names, ("1", "2", "0"), name) for name in annotators]
  return ranked_fields(kind, prompt, texts, labels.of_votes(choices, 2))


def fine_grained(row: Row, kind: str) -> Row:
  """Reads FineGrainedRLHF (Wu et al. 2023): four predictions, and a preference in each pair.

  1 and 2 are the first and the second of a pair, and 0 is neither. Where the preferences are no
  ranking, the comparison has pairs. The passages of a question stand before it.
  """
  prompt = _with_passages(row)
  if kind == "prompt":
    return {"prompt": prompt}
  names = [name for name in (f"prediction {index}" for index in range(1, 10)) if name in row]
  texts = [lookup(row, name) for name in names]
  order = labels.of_pair_labels(
    lookup(row, "preference"), len(texts), ("1", "2", "0"), "preference"
  )
  if kind != "comparison":
    raise RecordError(f"this format holds no {kind}s; choose another format or kind of record")
  return {"prompt": prompt, "completions": texts, **order}


def _with_passages(row: Row) -> Any:
  """Returns the question of a row after its passages, each a title and sentences."""
  question = lookup(row, "question")
  passages = row.get("passages") or []
  if not isinstance(question, str) or not isinstance(passages, list):
    raise RecordError("question, passages: a text and a list are expected")
  texts = []
  for index, passage in enumerate(passages):
    sentences = passage if isinstance(passage, list) else [passage]
    if not all(isinstance(sentence, str) for sentence in sentences):
      raise RecordError(f"passages[{index}]: a list of texts is expected")
    texts.append(" ".join(sentences))
  return "\n\n".join([*texts, question])


def arena(row: Row, kind: str) -> Row:
  """Reads Chatbot Arena (Zheng et al. 2023): two conversations and the winner, a model or a tie.

  The messages that both begin with are the prompt. Each conversation must have one reply after it.
  """
  names = ("conversation_a", "conversation_b")
  first, second = lookup(row, names[0]), lookup(row, names[1])
  if not isinstance(first, list) or not isinstance(second, list):
    raise RecordError(f"{', '.join(names)}: lists of messages are expected")
  winner = labels.preferred(lookup(row, "winner"), names, (), "winner")
  prompt, *replies = formats.split_chats(None, first, second, names)
  fields = ranked_fields(kind, prompt, replies, labels.of_votes([winner], 2))
  if kind == "comparison":
    models = [row.get("model_a"), row.get("model_b")]
    if all(isinstance(model, str) and model for model in models):
      fields["sources"] = models
    if isinstance(row.get("judge"), str):
      fields["labeler"] = row["judge"]
  return fields


# --- HelpSteer ---


def helpsteer(rows: list[tuple[str, Row]], kind: str) -> Iterator[tuple[str, Row | RecordError]]:
  """Reads HelpSteer (Wang et al. 2023, 2024): a response with scores, or two with a preference.

  Rows of one prompt that follow each other are one comparison, ranked by helpfulness; prompts with
  a single response give none. The strength of a preference is negative where the first response
  is the better one.
  """
  for group in _by_prompt(rows):
    place, first = group[0]
    if "helpfulness" in first:
      yield from _rated(place, [row for _, row in group], kind)
      continue
    for place, row in group:
      try:
        yield place, _preferred(row, kind)
      except RecordError as error:
        yield place, error


def _by_prompt(rows: Iterable[tuple[str, Row]]) -> Iterator[list[tuple[str, Row]]]:
  """Yields the rows of each prompt that follow each other."""
  group: list[tuple[str, Row]] = []
  for place, row in rows:
    if group and row.get("prompt") != group[0][1].get("prompt"):
      yield group
      group = []
    group.append((place, row))
  if group:
    yield group


def _rated(place: str, rows: list[Row], kind: str) -> Iterator[tuple[str, Row | RecordError]]:
  """Yields the record of the rated responses to one prompt, if they make one of this kind."""
  if kind == "comparison" and len(rows) == 1:
    return
  try:
    prompt = lookup(rows[0], "prompt")
    texts = [lookup(row, "response") for row in rows]
    scores = [labels.number(lookup(row, "helpfulness"), "helpfulness") for row in rows]
    yield place, ranked_fields(kind, prompt, texts, labels.ranks(scores))
  except RecordError as error:
    yield place, error


def _preferred(row: Row, kind: str) -> Row:
  """Returns the fields of two responses and the strength of the preference between them."""
  prompt = lookup(row, "prompt" if "prompt" in row else "context")
  old = "response_1" in row
  texts = [lookup(row, f"response_{i}" if old else f"response{i}") for i in (1, 2)]
  name = "preference_strength" if "preference_strength" in row else "overall_preference"
  strength = labels.number(lookup(row, name), name)
  return ranked_fields(kind, prompt, texts, labels.ranks([-strength, strength]))
