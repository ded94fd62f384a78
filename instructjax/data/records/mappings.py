"""Ready mappings of public TFDS data sets to our records, by the name that TFDS knows them by.

`tfds:glue/sst2` and a folder that was prepared under that name are read with them when no
spelling and no fields are given.  The wordings of DROP, SQuAD, HellaSwag, RTE, SST, WMT15 and
the summaries are those of the paper (App. D and E.9); it has none for the others, and its
question for WSC (which noun?) has no answer where the label is false: those are ours. Names and
orders of the fields and labels are those of the builders of tensorflow-datasets 4.9.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from instructjax.data.records.formats import lookup
from instructjax.data.records.records import RecordError, Spelling

Row = dict[str, Any]
LANGUAGES = {
  "cs": "Czech",
  "de": "German",
  "fi": "Finnish",
  "fr": "French",
  "ru": "Russian",
}  # of WMT15, into English
NO_YES, YES_NO = ("No", "Yes"), ("Yes", "No")


class Mapping(NamedTuple):
  """How rows of a data set are read, and the kind of record that they are first of all."""

  kind: str
  spell: Spelling


def of(dataset: str) -> Mapping | None:
  """The mapping of a TFDS name, NAME[/CONFIG][:VERSION]; None where there is none."""
  parts = dataset.replace(":", "/").split("/")
  return TFDS.get("/".join(parts[:2]), TFDS.get(parts[0]))


def texts(field: str) -> Mapping:
  """A corpus whose documents stand in one field."""
  return Mapping(
    "text",
    lambda row, kind: {"text": _text(row, field)} if kind == "text" else _refuse(kind, "texts"),
  )


def prompts(field: str) -> Mapping:
  """Prompts that stand in one field."""
  return Mapping(
    "prompt",
    lambda row, kind: (
      {"prompt": _text(row, field)} if kind == "prompt" else _refuse(kind, "prompts")
    ),
  )


def demonstrations(
  ask: Callable[[Row], str], answer: Callable[[Row], str], body: str = ""
) -> Mapping:
  """A task: its prompt and its answer; `body` names the field of the documents, where they can be
  read as text too.
  """

  def spell(row: Row, kind: str) -> Row:
    if kind == "demonstration":
      return {"prompt": ask(row), "completion": answer(row)}
    if kind == "prompt":
      return {"prompt": ask(row)}
    if kind == "text" and body:
      return {"text": _text(row, body)}
    return _refuse(kind, f"demonstrations, prompts{' and texts' if body else ''}")

  return Mapping("demonstration", spell)


def _refuse(kind: str, held: str) -> Row:
  raise RecordError(
    f"this data set holds {held}, no {kind}s; choose another kind of record or give "
    "config.data.fields"
  )


def _text(row: Row, field: str) -> str:
  value = lookup(row, field)
  if not isinstance(value, str):
    raise RecordError(f"{field}: text is expected, this is a {type(value).__name__}")
  return value


def filled(template: str) -> Callable[[Row], str]:
  """A text with {field}s of the row; a dot goes into an object."""
  parts = [part.partition("}") for part in template.split("{")]
  first, *rest = parts
  return lambda row: first[0] + "".join(_text(row, field) + after for field, _, after in rest)


def _labelled(names: Sequence[str], field: str = "label") -> Callable[[Row], str]:
  """The name of a label."""
  return lambda row: names[_number(row, field, len(names))]


def _number(row: Row, field: str, count: int) -> int:
  value = lookup(row, field)
  if value == -1 and type(value) is int:
    raise RecordError(
      f"{field}: -1, the answers of this split are not public; use train or validation"
    )
  if type(value) is not int or not 0 <= value < count:
    raise RecordError(f"{field}: a whole number from 0 to {count - 1} is expected")
  return value


# --- tasks with more than a template ---


def _squad_answer(row: Row) -> str:
  """The first answer; where the question has none, what the paper's instruction asks for."""
  return "Not in background." if row.get("is_impossible") is True else _text(row, "answers.text.0")


def _ending(row: Row) -> str:
  endings = lookup(row, "endings")
  if not isinstance(endings, list):
    raise RecordError("endings: a list of texts is expected")
  return _text(row, f"endings.{_number(row, 'label', len(endings))}")


def _concludes(premise: str, hypothesis: str) -> Callable[[Row], str]:
  """RTE: the hypothesis goes into a question, without its full stop."""
  passage, claim = filled(f"Passage: {{{premise}}}"), filled(f"{{{hypothesis}}}")
  return lambda row: (
    f"{passage(row)}\n\nQuestion: From this passage can one reasonably conclude that "
    f"{claim(row).strip().removesuffix('.')}?\n\nAnswer:"
  )


def _copa(row: Row) -> str:
  asked = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
  question = _text(row, "question")
  if question not in asked:
    raise RecordError("question: 'cause' or 'effect' is expected")
  choices = "\n".join(f"- {_text(row, name)}" for name in ("choice1", "choice2"))
  return f"{_text(row, 'premise')}\n\nQuestion: {asked[question]}\n{choices}\n\nAnswer:"


def language(row: Row) -> str:
  found = [code for code in row if code in LANGUAGES]
  if len(found) != 1:
    raise RecordError(
      f"{', '.join(LANGUAGES)}: one of them is expected beside en; the row has "
      f"{', '.join(sorted(row))}"
    )
  return found[0]


def _translate(row: Row) -> str:
  code = language(row)
  name = LANGUAGES[code]
  return f"Translate the following sentences from {name} into English.\n\n{name}: {_text(row, code)}\nEnglish:"


SQUAD = demonstrations(
  filled(
    "Answer each question using information in the preceding background paragraph. If there is not "
    "enough information "
    'provided, answer with "Not in background."\n\nTitle: {title}\n\nBackground: {context}\n\nQ: '
    "{question}\n\nA:"
  ),
  _squad_answer,
)
WSC = demonstrations(
  filled(
    'Passage: {text}\n\nQuestion: In the passage above, does the pronoun "{span2_text}" refer to '
    "{span1_text}?\n\nAnswer:"
  ),
  _labelled(NO_YES),
)
TFDS: dict[str, Mapping] = {
  "c4": texts("text"),
  "lm1b": texts("text"),
  "wikipedia": texts("text"),
  "reddit": demonstrations(filled("{content}\n\nTL;DR:"), filled("{summary}"), body="body"),
  "cnn_dailymail": demonstrations(filled("{article}\n\nTL;DR:"), filled("{highlights}")),
  "squad": SQUAD,
  "drop": demonstrations(
    filled(
      "Answer each question using information in the preceding passage.\n\n"
      "Passage: {passage}\nQuestion: {question}\nAnswer:"
    ),
    filled("{answer}"),
  ),
  "hellaswag": demonstrations(
    filled(
      "Complete each independent paragraph using common-sense reasoning.\n\n{activity_label}: "
      "{context}"
    ),
    _ending,
  ),
  "glue/sst2": demonstrations(
    filled(
      "For each snippet of text, label the sentiment of the text as positive or negative.\n\nText: "
      "{sentence}\nLabel:"
    ),
    _labelled(("negative", "positive")),
  ),
  "glue/rte": demonstrations(_concludes("sentence1", "sentence2"), _labelled(YES_NO)),
  "super_glue/rte": demonstrations(_concludes("premise", "hypothesis"), _labelled(YES_NO)),
  "super_glue/cb": demonstrations(
    _concludes("premise", "hypothesis"), _labelled(("Yes", "No", "Maybe"))
  ),
  "super_glue/boolq": demonstrations(
    filled("Passage: {passage}\n\nQuestion: {question}?\n\nAnswer:"), _labelled(NO_YES)
  ),
  "super_glue/copa": demonstrations(
    _copa, lambda row: _text(row, f"choice{_number(row, 'label', 2) + 1}")
  ),
  "super_glue/multirc": demonstrations(
    filled(
      'Passage: {paragraph}\n\nQuestion: {question}\nIs "{answer}" a right answer?\n\nAnswer:'
    ),
    _labelled(NO_YES),
  ),
  "super_glue/record": demonstrations(
    filled(
      "Passage: {passage}\n\n{query}\n\nQuestion: What does @placeholder stand for?\n\nAnswer:"
    ),
    filled("{answers.0}"),
  ),
  "super_glue/wic": demonstrations(
    filled(
      '{sentence1}\n{sentence2}\n\nQuestion: Does the word "{word}" have the same meaning in both '
      "sentences?\n\nAnswer:"
    ),
    _labelled(NO_YES),
  ),
  "super_glue/wsc": WSC,
  "super_glue/wsc.fixed": WSC,
  "wmt15_translate": demonstrations(_translate, filled("{en}")),
  "real_toxicity_prompts": prompts("prompt.text"),
}
