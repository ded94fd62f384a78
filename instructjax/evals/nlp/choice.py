"""Tasks with a few answers to choose from (HellaSwag, SST, RTE), and WSC, which asks for a noun.

The fields are those of the hub and of TFDS, and our own JSONL has the same:

HellaSwag   {"activity_label", "ctx" (TFDS: "context"), "endings": [4 texts], "label": 0..3}
SST         {"sentence", "label": 0 negative, 1 positive}
RTE         {"sentence1", "sentence2", "label": 0 entailment, 1 not} (GLUE), or
            {"premise", "hypothesis", "label"} (SuperGLUE)
WSC         {"text", "span1_text", "span2_text", "span2_index",
            "label": 1 where the pronoun means span1}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Reply, Scores

Row = Mapping[str, Any]

# The instructions of App. D.
HELLASWAG = Form("Complete each independent paragraph using common-sense reasoning.")
SST = Form("For each snippet of text, label the sentiment of the text as positive or negative.")
RTE = Form()
WSC = Form(
  "Final Exam with Answer Key\n"
  "Instructions: Please carefully read the following passages. For each passage, you must identify "
  "which noun the pronoun marked in bold refers to."
)


def hellaswag(row: Row) -> Passage:
  """Returns the passage of a row of HellaSwag."""
  endings = [ending.strip() for ending in rows.texts(row, "endings")]
  if not all(endings):
    raise RecordError("endings: one of them is empty")
  label = row.get("label")
  if isinstance(label, str) and label.isdigit():  # as the hub writes it
    label = int(label)
  label = rows.choice({"label": label}, "label", len(endings))
  context = rows.text(row, "ctx" if "ctx" in row else "context").strip()
  ask = f"{rows.text(row, 'activity_label')}: {context}"
  # "activitynet~v_-1IBHYS3L-Y" or "wikihow~123": the endings of one video or article are a cluster.
  source = row.get("source_id")
  if not isinstance(source, str):
    source = ""
  domain, _, _ = source.partition("~")
  slices = {"domain": domain} if domain else {}
  turn = Turn("", ask, endings[label], choices=endings, label=label, slices=slices)
  return _single_turn(turn, source)


def sst(row: Row) -> Passage:
  """Returns the passage of a row of SST-2."""
  ask = f"Text: {rows.text(row, 'sentence').strip()}\nLabel:"
  # In the order of the labels, 0 and 1.
  return _labelled(row, ask, ("negative", "positive"))


def rte(row: Row) -> Passage:
  """Returns the passage of a row of RTE.

  The hypothesis becomes part of a question, without its full stop.
  """
  premise_field = "sentence1" if "sentence1" in row else "premise"
  hypothesis_field = "sentence2" if "sentence1" in row else "hypothesis"
  premise = rows.text(row, premise_field)
  hypothesis = rows.text(row, hypothesis_field).strip().removesuffix(".")
  ask = (
    f"Passage: {premise}\n\n"
    f"Question: From this passage can one reasonably conclude that {hypothesis}?\n\n"
    "Answer:"
  )
  # 0 is entailment.
  return _labelled(row, ask, ("Yes", "No"))


def _labelled(row: Row, ask: str, names: Sequence[str]) -> Passage:
  """Returns the passage of a row whose label is the index of a name."""
  label = rows.choice(row, "label", len(names))
  slices = {"label": names[label]}
  turn = Turn("", ask, names[label], choices=names, label=label, slices=slices)
  return _single_turn(turn)


def _single_turn(turn: Turn, cluster: str = "") -> Passage:
  """Returns a passage of one turn; rows that ask the same are a cluster if none is given."""
  return Passage("", cluster or turn.ask, "", (turn,))


def choice_score(answer: Reply, data: Row) -> Scores:
  """Returns 1 where the right answer has the highest mean log-probability of a token, else 0.

  The paper prints "the lowest" (E9 of docs/errata.md). Of equals the first is taken.
  """
  means = []
  for index in range(len(data["choices"])):
    # The mean over tokens does not favour short answers.
    weight = answer.logp(index)
    means.append(weight.logp / weight.tokens)
  best = means.index(max(means))
  return {"accuracy": float(best == data["label"])}


# --- WSC ---


def wsc(row: Row) -> Passage:
  """Returns the passage of a row of WSC.

  The pronoun is marked as the instruction says: **it**. Where the label is 0, the data do not say
  which noun it means, so such rows have no answer and cannot be exemplars.
  """
  text = rows.text(row, "text")
  pronoun = rows.text(row, "span2_text").strip()
  candidate = rows.text(row, "span1_text").strip()
  label = row.get("label")
  if not isinstance(label, bool):
    label = rows.choice(row, "label", 2)
  ask = (
    f"Passage: {_mark(text, pronoun, row.get('span2_index'))}\n"
    f'Question: In the passage above, what does the pronoun "{pronoun}" refer to?\n'
    "Answer:"
  )
  turn = Turn(
    "",
    ask,
    answer=candidate if label else "",
    references=(candidate,),
    label=int(label),
    slices={"label": "true" if label else "false"},
  )
  return _single_turn(turn, text)


def _mark(text: str, pronoun: str, word_index: Any) -> str:
  """Returns the text with the pronoun in bold.

  The occurrence nearest to word number `word_index` is marked, because that number is off by some
  words in a few rows.
  """
  if type(word_index) is not int:
    raise RecordError(
      "span2_index: the number of the pronoun among the words of the text is expected, this is "
      f"{word_index!r}"
    )
  whole_word = rf"(?<!\w){re.escape(pronoun)}(?!\w)"
  starts = [match.start() for match in re.finditer(whole_word, text)]
  if not starts:
    raise RecordError(
      f"span2_text: {pronoun!r} does not stand in the text; super_glue/wsc.fixed has such rows put "
      "right"
    )

  def distance(start: int) -> int:
    words_before = len(text[:start].split())
    return abs(words_before - word_index)

  start = min(starts, key=distance)
  end = start + len(pronoun)
  return f"{text[:start]}**{pronoun}**{text[end:]}"


def wsc_score(text: str, data: Row) -> Scores:
  """Returns 1 where the answer is right about the candidate, else 0.

  The answer means the candidate if one of the two holds the other, word for word. Where the label
  is 0, the right answer is one that does not mean it.
  """
  # The spaces at both ends make it a comparison of whole words.
  answer = f" {text_metrics.normalised(text)} "
  candidate = f" {text_metrics.normalised(data['references'][0])} "
  is_empty = not answer.strip()
  means_candidate = not is_empty and (answer in candidate or candidate in answer)
  return {"accuracy": float(means_candidate == bool(data["label"]))}
