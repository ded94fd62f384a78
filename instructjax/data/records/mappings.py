"""Ready mappings of public TFDS data sets to our records, by the names that TFDS gives them.

`tfds:glue/sst2`, and a folder that was prepared under that name, are read with them when no
spelling and no fields are given. The names and the order of the fields and labels are those of the
builders of tensorflow-datasets 4.9.10.

The wordings of DROP, SQuAD, HellaSwag, RTE, SST, WMT15 and the summaries are those of Ouyang et al.
2022 (App. D and E.9). The paper has none for the others. Its question for WSC, which asks for a
noun, has no answer where the label is false. These wordings are therefore ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from instructjax.data.records.formats import lookup
from instructjax.data.records.records import RecordError, Spelling

Row = dict[str, Any]
# A function that makes one text of a row: a prompt or an answer.
TextOfRow = Callable[[Row], str]
# The languages of WMT15, which are translated into English.
LANGUAGES = {
  "cs": "Czech",
  "de": "German",
  "fi": "Finnish",
  "fr": "French",
  "ru": "Russian",
}
# Answers in the order of the labels. The builders put false first, and entailment before its
# opposite.
NO_YES = ("No", "Yes")
YES_NO = ("Yes", "No")


class Mapping(NamedTuple):
  """How the rows of a data set are read, and the kind of record that they are first of all."""

  kind: str
  spell: Spelling


def of(dataset: str) -> Mapping | None:
  """Returns the mapping of a TFDS name, NAME[/CONFIG][:VERSION], or None if there is none."""
  parts = dataset.replace(":", "/").split("/")
  # A mapping may be of one configuration (glue/sst2) or of all of them (squad).
  return TFDS.get("/".join(parts[:2]), TFDS.get(parts[0]))


# --- kinds of data sets ---


def texts(field: str) -> Mapping:
  """Returns the mapping of a corpus whose documents are in one field."""

  def spell(row: Row, kind: str) -> Row:
    if kind != "text":
      raise _refusal(kind, "texts")
    return {"text": _text(row, field)}

  return Mapping("text", spell)


def prompts(field: str) -> Mapping:
  """Returns the mapping of a data set whose prompts are in one field."""

  def spell(row: Row, kind: str) -> Row:
    if kind != "prompt":
      raise _refusal(kind, "prompts")
    return {"prompt": _text(row, field)}

  return Mapping("prompt", spell)


def demonstrations(ask: TextOfRow, answer: TextOfRow, body: str = "") -> Mapping:
  """Returns the mapping of a task: `ask` makes the prompt of a row, and `answer` the completion.

  `body` is the field of the documents, where they can be read as texts too.
  """

  def spell(row: Row, kind: str) -> Row:
    if kind == "demonstration":
      return {"prompt": ask(row), "completion": answer(row)}
    if kind == "prompt":
      return {"prompt": ask(row)}
    if kind == "text" and body:
      return {"text": _text(row, body)}
    raise _refusal(kind, f"demonstrations, prompts{' and texts' if body else ''}")

  return Mapping("demonstration", spell)


def _refusal(kind: str, kinds: str) -> RecordError:
  return RecordError(
    f"this data set holds {kinds}, no {kind}s; choose another kind of record or give "
    "config.data.fields"
  )


# --- texts and labels of a row ---


def filled(template: str) -> TextOfRow:
  """Returns a function that fills the {field}s of a template; a dot goes into an object.

  `str.format` does something else with dots, and with braces in the texts.
  """
  start, *parts = template.split("{")
  fields = [part.partition("}") for part in parts]

  def fill(row: Row) -> str:
    return start + "".join(_text(row, field) + after for field, _, after in fields)

  return fill


def _text(row: Row, field: str) -> str:
  value = lookup(row, field)
  if not isinstance(value, str):
    raise RecordError(f"{field}: text is expected, this is a {type(value).__name__}")
  return value


def _labelled(names: Sequence[str], field: str = "label") -> TextOfRow:
  """Returns a function that gives the name of a row's label."""

  def name(row: Row) -> str:
    return names[_number(row, field, len(names))]

  return name


def _number(row: Row, field: str, count: int) -> int:
  """Returns a label from 0 to count - 1."""
  value = lookup(row, field)
  # GLUE and SuperGLUE write -1 where they keep the answers of the test split to themselves.
  if value == -1 and type(value) is int:
    raise RecordError(
      f"{field}: -1, the answers of this split are not public; use train or validation"
    )
  if type(value) is not int or not 0 <= value < count:
    raise RecordError(f"{field}: a whole number from 0 to {count - 1} is expected")
  return value


# --- tasks that need more than a template ---


def _squad_answer(row: Row) -> str:
  """Returns the first answer, or what the paper's instruction asks for where there is none."""
  if row.get("is_impossible") is True:
    return "Not in background."
  return _text(row, "answers.text.0")


def _ending(row: Row) -> str:
  """Returns the right one of HellaSwag's endings."""
  endings = lookup(row, "endings")
  if not isinstance(endings, list):
    raise RecordError("endings: a list of texts is expected")
  return _text(row, f"endings.{_number(row, 'label', len(endings))}")


def _concludes(premise: str, hypothesis: str) -> TextOfRow:
  """Returns the question of RTE, which holds the hypothesis without its full stop."""

  def ask(row: Row) -> str:
    passage = _text(row, premise)
    claim = _text(row, hypothesis).strip().removesuffix(".")
    return (
      f"Passage: {passage}\n\n"
      f"Question: From this passage can one reasonably conclude that {claim}?\n\n"
      "Answer:"
    )

  return ask


def _copa_question(row: Row) -> str:
  questions = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
  relation = _text(row, "question")
  if relation not in questions:
    raise RecordError("question: 'cause' or 'effect' is expected")
  choices = "\n".join(f"- {_text(row, name)}" for name in ("choice1", "choice2"))
  return f"{_text(row, 'premise')}\n\nQuestion: {questions[relation]}\n{choices}\n\nAnswer:"


def _copa_answer(row: Row) -> str:
  # The label counts from 0, the names of the fields from 1.
  return _text(row, f"choice{_number(row, 'label', 2) + 1}")


def language(row: Row) -> str:
  """Returns the code of the language that a row of WMT15 translates into English."""
  codes = [code for code in row if code in LANGUAGES]
  if len(codes) != 1:
    fields = ", ".join(sorted(row))
    raise RecordError(
      f"{', '.join(LANGUAGES)}: one of them is expected beside en; the row has {fields}"
    )
  return codes[0]


def _translate(row: Row) -> str:
  code = language(row)
  name = LANGUAGES[code]
  return (
    f"Translate the following sentences from {name} into English.\n\n"
    f"{name}: {_text(row, code)}\n"
    "English:"
  )


# --- the data sets ---

SQUAD = demonstrations(
  filled(
    "Answer each question using information in the preceding background paragraph. "
    'If there is not enough information provided, answer with "Not in background."\n\n'
    "Title: {title}\n\nBackground: {context}\n\nQ: {question}\n\nA:"
  ),
  _squad_answer,
)
WSC = demonstrations(
  filled(
    "Passage: {text}\n\n"
    'Question: In the passage above, does the pronoun "{span2_text}" refer to {span1_text}?\n\n'
    "Answer:"
  ),
  _labelled(NO_YES),
)
TFDS: dict[str, Mapping] = {
  # Corpora.
  "c4": texts("text"),
  "lm1b": texts("text"),
  "wikipedia": texts("text"),
  # Summaries. The posts of Reddit are texts too.
  "reddit": demonstrations(filled("{content}\n\nTL;DR:"), filled("{summary}"), body="body"),
  "cnn_dailymail": demonstrations(filled("{article}\n\nTL;DR:"), filled("{highlights}")),
  # Tasks in the paper's words, except for the ones that are marked as ours.
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
      "Complete each independent paragraph using common-sense reasoning.\n\n"
      "{activity_label}: {context}"
    ),
    _ending,
  ),
  "glue/sst2": demonstrations(
    filled(
      "For each snippet of text, label the sentiment of the text as positive or negative.\n\n"
      "Text: {sentence}\nLabel:"
    ),
    _labelled(("negative", "positive")),
  ),
  # Three data sets with the question of RTE.
  "glue/rte": demonstrations(_concludes("sentence1", "sentence2"), _labelled(YES_NO)),
  "super_glue/rte": demonstrations(_concludes("premise", "hypothesis"), _labelled(YES_NO)),
  "super_glue/cb": demonstrations(
    _concludes("premise", "hypothesis"), _labelled(("Yes", "No", "Maybe"))
  ),
  # The wordings of SuperGLUE from here on are ours.
  "super_glue/boolq": demonstrations(
    filled("Passage: {passage}\n\nQuestion: {question}?\n\nAnswer:"),
    _labelled(NO_YES),
  ),
  "super_glue/copa": demonstrations(_copa_question, _copa_answer),
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
    # Several spellings of a name are right, and the first one is taken.
    filled("{answers.0}"),
  ),
  "super_glue/wic": demonstrations(
    filled(
      "{sentence1}\n{sentence2}\n\n"
      'Question: Does the word "{word}" have the same meaning in both sentences?\n\n'
      "Answer:"
    ),
    _labelled(NO_YES),
  ),
  "super_glue/wsc": WSC,
  "super_glue/wsc.fixed": WSC,
  # Translation, in the paper's words.
  "wmt15_translate": demonstrations(_translate, filled("{en}")),
  # Prompts.
  "real_toxicity_prompts": prompts("prompt.text"),
}
