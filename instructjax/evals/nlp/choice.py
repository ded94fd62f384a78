"""Tasks with a few answers to choose from: HellaSwag, SST, RTE; and WSC, where the model names a
noun.

The layouts are those of the hub and TFDS, whose fields our own JSONL shares:
HellaSwag   {"activity_label", "ctx" (TFDS: "context"), "endings": [4 texts], "label": 0..3}
SST         {"sentence", "label": 0 negative, 1 positive}
RTE         {"sentence1", "sentence2", "label": 0 entailment, 1 not} (GLUE) or {"premise", "hypothesis", "label"} (SuperGLUE)
WSC         {"text", "span1_text", "span2_text", "span2_index", "label": 1 where the pronoun means span1}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from instructjax.data.records.records import RecordError
from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Said, Scores

Row = Mapping[str, Any]
HELLASWAG = Form("Complete each independent paragraph using common-sense reasoning.")
SST = Form("For each snippet of text, label the sentiment of the text as positive or negative.")
RTE = Form()
WSC = Form(
  "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For "
  "each passage, you must identify "
  "which noun the pronoun marked in bold refers to."
)


def hellaswag(row: Row) -> Passage:
  """A row of HellaSwag; endings of one video or article (`source_id`) are one cluster."""
  endings = [one.strip() for one in rows.texts(row, "endings")]
  if not all(endings):
    raise RecordError("endings: one of them is empty")
  label = row.get("label")
  label = rows.choice(
    {"label": int(label) if isinstance(label, str) and label.isdigit() else label},
    "label",
    len(endings),
  )
  ask = f"{rows.text(row, 'activity_label')}: {rows.text(row, 'ctx' if 'ctx' in row else 'context').strip()}"
  source = row.get("source_id")
  domain = source.partition("~")[0] if isinstance(source, str) else ""
  turn = Turn(
    "",
    ask,
    endings[label],
    choices=endings,
    label=label,
    slices={"domain": domain} if domain else {},
  )
  return _alone(turn, source if isinstance(source, str) else "")


def sst(row: Row) -> Passage:
  """A row of SST-2."""
  return _labelled(
    row, f"Text: {rows.text(row, 'sentence').strip()}\nLabel:", ("negative", "positive")
  )


def rte(row: Row) -> Passage:
  """A row of RTE; the hypothesis goes into a question, without its full stop."""
  first, second = ("sentence1", "sentence2") if "sentence1" in row else ("premise", "hypothesis")
  claim = rows.text(row, second).strip().removesuffix(".")
  asked = f"Question: From this passage can one reasonably conclude that {claim}?\n\nAnswer:"
  return _labelled(row, f"Passage: {rows.text(row, first)}\n\n{asked}", ("Yes", "No"))


def _labelled(row: Row, ask: str, names: tuple[str, ...]) -> Passage:
  label = rows.choice(row, "label", len(names))
  return _alone(
    Turn("", ask, names[label], choices=names, label=label, slices={"label": names[label]})
  )


def _alone(turn: Turn, cluster: str = "") -> Passage:
  return Passage("", cluster or turn.ask, "", (turn,))


def choice_score(said: Said, data: Row) -> Scores:
  """1 where the right answer has the highest mean log-probability of a token, else 0.

  The paper prints "the lowest" (E9 of docs/errata.md).  Of equals the first is taken.
  """
  found = [said.logp(at) for at in range(len(data["choices"]))]
  means = [one.logp / one.tokens for one in found]
  return {"accuracy": float(means.index(max(means)) == data["label"])}


def wsc(row: Row) -> Passage:
  """A row of WSC.  The pronoun is marked as the instruction says: **it**; where label is 0 nobody
  says what it means.
  """
  text, pronoun, candidate = (
    rows.text(row, field) for field in ("text", "span2_text", "span1_text")
  )
  label = (
    rows.choice(row, "label", 2) if not isinstance(row.get("label"), bool) else int(row["label"])
  )
  marked = _marked(text, pronoun.strip(), row.get("span2_index"))
  asked = (
    f'Question: In the passage above, what does the pronoun "{pronoun.strip()}" refer to?\nAnswer:'
  )
  answer = candidate.strip() if label else ""
  slices = {"label": "true" if label else "false"}
  turn = Turn(
    "",
    f"Passage: {marked}\n{asked}",
    answer,
    references=(candidate.strip(),),
    label=label,
    slices=slices,
  )
  return _alone(turn, text)


def _marked(text: str, pronoun: str, index: Any) -> str:
  """The text with the pronoun in bold: the one nearest to word number `index`, which is off by some
  words in a few rows.
  """
  if type(index) is not int:
    raise RecordError(
      "span2_index: the number of the pronoun among the words of the text is expected, this is "
      f"{index!r}"
    )
  starts = [found.start() for found in re.finditer(rf"(?<!\w){re.escape(pronoun)}(?!\w)", text)]
  if not starts:
    raise RecordError(
      f"span2_text: {pronoun!r} does not stand in the text; super_glue/wsc.fixed has such rows put "
      "right"
    )
  start = min(starts, key=lambda at: abs(len(text[:at].split()) - index))
  return f"{text[:start]}**{pronoun}**{text[start + len(pronoun) :]}"


def wsc_score(text: str, data: Row) -> Scores:
  """1 where what the answer says of the candidate is right: it means the candidate if one holds the
  other, word for word.
  """
  ours, theirs = (f" {text_metrics.normalised(one)} " for one in (text, data["references"][0]))
  same = bool(ours.strip()) and (ours in theirs or theirs in ours)
  return {"accuracy": float(same == bool(data["label"]))}
