"""Who scores: a fingerprint of a judge, so that what was scored by another one is never taken for this one's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from instructjax.evals.tasks import Task, fingerprint
from instructjax.rewards import functions, judge, spec

COUNT = ("as", "input", "language", "url")  # the options of rewards that change a score
END = 1 << 16  # bytes at the end of a file, where weights that were trained again differ


def judged(task: Task, *sources: str) -> Task:
  """A task that reward sources score."""
  return task._replace(judge=",".join(map(identity, sources)), everywhere=all(map(everywhere, sources)))


def identity(source: str) -> str:
  """Of a reward source and of what lies there now: functions, templates, runs and model folders; of a server only its address.

  Raises UserError as `rewards.open_all` does.
  """
  facts = lambda t: (t.kind, t.target, t.choice, t.weight, {name: t.options[name] for name in COUNT if name in t.options})
  return fingerprint([(*facts(term), content(term)) for term in spec.parse(source)])


def everywhere(source: str) -> bool:
  """Whether all processes score: runs of ours use all devices; a server would be asked as often as there are processes."""
  return all(term.kind == "run" for term in spec.parse(source))


def content(term: spec.Term) -> str:
  """What the scores of a term depend on beside its words."""
  if term.kind == "python":
    return functions.open_function(term.target)[1]["sha256"]
  if term.kind == "openai":
    return judge.digest(judge.template(term.options["template"], judge.TEMPLATE, ()))
  return digest(term.target) if term.kind in ("run", "classifier") else ""


def digest(source: str) -> str:
  """Of the manifest of a run, which says when it began; of another model, the names, sizes and ends of its files; "" where none
  is here."""
  place = Path(source)
  if not source or not place.exists():
    return ""
  manifest = place / "manifest.json"
  if manifest.is_file():
    return hashlib.sha256(manifest.read_bytes()).hexdigest()
  files = sorted(one for one in place.rglob("*") if one.is_file()) if place.is_dir() else [place]
  return fingerprint([(str(one.relative_to(place)), *_end(one)) for one in files])


def _end(file: Path) -> tuple[int, str]:
  size = file.stat().st_size
  with file.open("rb") as content:
    content.seek(max(size - END, 0))
    return size, hashlib.sha256(content.read()).hexdigest()
