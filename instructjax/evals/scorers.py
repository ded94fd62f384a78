"""Who scores: a fingerprint of a judge, so that what was scored by another one is never taken for
this one's.
"""

from __future__ import annotations

from instructjax.evals.tasks import Task, fingerprint
from instructjax.rewards import functions, judge, spec
from instructjax.runs import provenance

COUNT = ("as", "input", "language", "url")  # the options of rewards that change a score


def judged(task: Task, *sources: str) -> Task:
  """A task that reward sources score."""
  return task._replace(judge=",".join(map(identity, sources)))


def identity(source: str) -> str:
  """Of a reward source and of what lies there now: functions, templates, runs and models; of a
  server only its address.

  Raises UserError as `rewards.open_all` does.
  """
  facts = lambda t: (
    t.kind,
    t.target,
    t.choice,
    t.weight,
    {name: t.options[name] for name in COUNT if name in t.options},
  )
  return fingerprint([(*facts(term), content(term)) for term in spec.parse(source)])


def content(term: spec.Term) -> str:
  """What the scores of a term depend on beside its words."""
  if term.kind == "python":
    return functions.open_function(term.target)[1]["sha256"]
  if term.kind == "openai":
    return judge.digest(judge.template(term.options["template"], judge.TEMPLATE, ()))
  return provenance.digest(term.target) if term.kind in ("run", "classifier") else ""
