"""Tasks whose answer is a text: translation (WMT15 French to English), and summaries.

WMT15    {"fr", "en"} (TFDS), or both under "translation" (hub)
CNN/DM   {"article", "highlights"}
TL;DR    {"post", "summary"}; Reddit's {"content", "summary"}; or {"prompt", "completion"} or
         {"prompt", "label"} of the public copies, whose own "TL;DR:" is taken off
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Scores

Row = Mapping[str, Any]

# The instructions of App. D; summaries have none but the cue.
WMT = Form("Translate the following sentences from French into English.")
SUMMARY = Form()
CUE = "TL;DR:"


def wmt(row: Row) -> Passage:
  """Returns the passage of a sentence and its translation."""
  inner = row.get("translation")
  # The hub has both languages in an object.
  pair = inner if isinstance(inner, Mapping) else row
  french = rows.text(pair, "fr").strip()
  english = rows.text(pair, "en").strip()
  return _single_turn(row, f"French: {french}\nEnglish:", english)


def wmt_score(text: str, data: Row) -> Scores:
  """Returns the counts whose sums over a corpus make BLEU."""
  reference = data["references"][0]
  return {
    "BLEU": text_metrics.bleu_counts(text, reference),
    "words": float(len(text.split())),
  }


def cnn_dm(row: Row) -> Passage:
  """Returns the passage of an article and its highlights."""
  article = rows.text(row, "article").strip()
  highlights = rows.text(row, "highlights").strip()
  return _single_turn(row, f"{article}\n\n{CUE}", highlights)


def tldr(row: Row) -> Passage:
  """Returns the passage of a post and its summary."""
  post_field = _first_present(row, ("post", "content"), "prompt")
  summary_field = _first_present(row, ("summary", "completion"), "label")
  # The cue would stand there twice.
  post = rows.text(row, post_field).strip().removesuffix(CUE).rstrip()
  summary = rows.text(row, summary_field).strip()
  return _single_turn(row, f"{post}\n\n{CUE}", summary)


def _first_present(row: Row, fields: Sequence[str], default: str) -> str:
  for field in fields:
    if field in row:
      return field
  return default


def summary_score(text: str, data: Row) -> Scores:
  """Returns ROUGE-L, and the length in words, because longer summaries share more words."""
  reference = data["references"][0]
  return {
    "ROUGE-L": text_metrics.rouge_l(text, reference),
    "words": float(len(text.split())),
  }


def _single_turn(row: Row, ask: str, answer: str) -> Passage:
  """Returns a passage of one turn; rows with the same source are a cluster."""
  name = str(row.get("id") or "")
  turn = Turn(name, ask, answer, references=(answer,))
  return Passage("", ask, "", (turn,))
