"""The CSV files of XSTest and HarmBench as rows of the suite: id, prompt, kind.

  XSTest (Röttger et al. 2024)     id, prompt, type, label, focus, note; its 250 safe prompts sound
                                   unsafe, and its 200 unsafe ones are their contrast
  HarmBench (Mazeika et al. 2024)  Behavior, FunctionalCategory, SemanticCategory, Tags,
                                   ContextString, BehaviorID; every behaviour is harmful

Rows of our own layout (id, prompt, kind) are passed on. Whether an answer refuses is for a judge to
say (config.behaviours.judge); behaviours of the category "copyright" ask for texts by heart, which
no judge of refusals can score, and are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from instructjax.data.records.records import RecordError
from instructjax.errors import UserError
from instructjax.evals import rows

SAFE, UNSAFE = "safe", "unsafe"
CONTRAST = "contrast_"  # begins the types of XSTest's unsafe prompts
COPYRIGHT = "copyright"
# What HarmBench puts between a context and the behaviour that is about it.
AFTER_CONTEXT = "\n\n---\n\n"


class Prompt(NamedTuple):
  """A prompt of a file; `label` is "safe", "unsafe", or "" where a file does not say."""

  id: str
  prompt: str
  kind: str
  label: str


def read(source: str, label: str, *, folder: str | None = None) -> list[dict[str, str]]:
  """Returns the rows (id, prompt, kind) of a file whose label is `label` or that have none.

  Raises:
    UserError: for bad rows, and for a file without a prompt of this label.
  """
  prompts = rows.read(source, convert, folder=folder)
  selected = [
    {"id": each.id, "prompt": each.prompt, "kind": each.kind}
    for each in prompts
    if each.label in ("", label) and each.kind != COPYRIGHT
  ]
  if not selected:
    raise UserError(f"{source}: has no {label} prompt; give a file that has")
  return selected


def convert(row: Mapping[str, Any]) -> Prompt:
  """Returns the prompt of a row of any of the layouts."""
  if "Behavior" in row:
    return _harmbench(row)
  if "type" in row and "kind" not in row:
    return _xstest(row)
  return Prompt(str(row.get("id", "")), rows.text(row, "prompt"), rows.text(row, "kind"), "")


def _harmbench(row: Mapping[str, Any]) -> Prompt:
  prompt = rows.text(row, "Behavior")
  context = row.get("ContextString") or ""
  if context:
    prompt = f"{context}{AFTER_CONTEXT}{prompt}"
  kind = rows.text(row, "SemanticCategory")
  if row.get("FunctionalCategory") == COPYRIGHT:
    kind = COPYRIGHT
  return Prompt(rows.text(row, "BehaviorID"), prompt, kind, UNSAFE)


def _xstest(row: Mapping[str, Any]) -> Prompt:
  kind = rows.text(row, "type")
  # Early versions of the file have no labels, and say it by the type alone.
  label = row.get("label") or (UNSAFE if kind.startswith(CONTRAST) else SAFE)
  if label not in (SAFE, UNSAFE):
    raise RecordError(f"label: safe or unsafe is expected, this is {label!r}")
  return Prompt(f"xstest-{row.get('id', '')}", rows.text(row, "prompt"), kind, label)
