"""A fingerprint of each judge, so that scores of another judge are never taken for its own."""

from __future__ import annotations

from typing import Any

from instructjax.evals.tasks import Task, fingerprint
from instructjax.rewards import functions, judge, spec
from instructjax.runs import provenance

COUNT = ("as", "input", "long", "language", "url")  # the options of rewards that change a score


def judged(task: Task, *sources: str) -> Task:
  """Returns a task that is scored by these reward sources."""
  identities = [identity(source) for source in sources]
  return task._replace(judge=",".join(identities))


def identity(source: str) -> str:
  """Returns the fingerprint of a reward source and of what lies there now.

  It covers functions, templates, runs and models. Of a server only the address is covered: what
  runs behind it is not visible.

  Raises:
    UserError: if the source is not a reward, as `rewards.open_all` does.
  """
  terms = spec.parse(source)  # of a sum of rewards
  return fingerprint([_facts(term) for term in terms])


def _facts(term: spec.Term) -> tuple[Any, ...]:
  """Returns everything that changes the scores of a term."""
  # Other options say how fast a server is asked and where its replies are cached.
  options = {name: term.options[name] for name in COUNT if name in term.options}
  group = () if term.group is None else (str(term.group), term.group.number)
  return (
    term.kind,
    term.target,
    term.choice,
    term.weight,
    options,
    content(term),
    *group,
  )


def content(term: spec.Term) -> str:
  """Returns the fingerprint of what the scores of a term depend on beside its words."""
  if term.kind == "python":
    _, about = functions.open_function(term.target)
    return about["sha256"]
  if term.kind == "openai":
    file = term.options["template"]
    template = judge.template(file, judge.TEMPLATE, ())
    return judge.digest(template)
  if term.kind in ("run", "classifier"):
    return provenance.digest(term.target)
  return ""
