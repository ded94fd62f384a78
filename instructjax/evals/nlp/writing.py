"""Tasks whose answer is a text: WMT15 French to English, summaries of CNN/DM and TL;DR.

WMT15    {"fr", "en"} (TFDS), or both under "translation" (hub)
CNN/DM   {"article", "highlights"}
TL;DR    {"post", "summary"}; Reddit's {"content", "summary"}; or {"prompt", "completion"} or {"prompt", "label"} of the public
         copies, whose own "TL;DR:" is taken off
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructjax.evals import rows, text_metrics
from instructjax.evals.nlp.prompts import Form, Passage, Turn
from instructjax.evals.tasks import Scores

Row = Mapping[str, Any]
WMT = Form("Translate the following sentences from French into English.")
SUMMARY = Form()
CUE = "TL;DR:"


def wmt(row: Row) -> Passage:
  """A sentence and its translation."""
  inner = row.get("translation")
  pair = inner if isinstance(inner, Mapping) else row
  return _alone(
    row, f"French: {rows.text(pair, 'fr').strip()}\nEnglish:", rows.text(pair, "en").strip()
  )


def wmt_score(text: str, data: Row) -> Scores:
  """The counts whose sums make BLEU."""
  return {
    "BLEU": text_metrics.bleu_counts(text, data["references"][0]),
    "words": float(len(text.split())),
  }


def cnn_dm(row: Row) -> Passage:
  """An article and its highlights."""
  return _alone(
    row, f"{rows.text(row, 'article').strip()}\n\n{CUE}", rows.text(row, "highlights").strip()
  )


def tldr(row: Row) -> Passage:
  """A post and its summary."""
  post = next((field for field in ("post", "content") if field in row), "prompt")
  summary = next((field for field in ("summary", "completion") if field in row), "label")
  body = rows.text(row, post).strip().removesuffix(CUE).rstrip()
  return _alone(row, f"{body}\n\n{CUE}", rows.text(row, summary).strip())


def summary_score(text: str, data: Row) -> Scores:
  """ROUGE-L, and how long the summary is: longer ones share more words."""
  return {
    "ROUGE-L": text_metrics.rouge_l(text, data["references"][0]),
    "words": float(len(text.split())),
  }


def _alone(row: Row, ask: str, answer: str) -> Passage:
  return Passage("", ask, "", (Turn(str(row.get("id") or ""), ask, answer, (answer,)),))
