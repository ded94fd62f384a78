"""Requests of lm-evaluation-harness that a model has no room for are counted.

The tests in tests/parity run the harness itself.
"""

from types import SimpleNamespace

import pytest

from instructjax.evals import harness, subject
from instructjax.evals.harness import Limits
from instructjax.settings import reading


@pytest.fixture(scope="module")
def opened():
  return subject.open_subject(
    "", reading.override(reading.load("eval"), [("tokens", "512"), ("model.dtype", "float32")]), 1
  )


@pytest.fixture(autouse=True)
def package(monkeypatch):
  """A stand-in for the harness: the adapter needs its base class alone."""
  monkeypatch.setattr(harness, "_package", lambda name: SimpleNamespace(LM=object))


def instance(task, *arguments):
  return SimpleNamespace(args=arguments, task_name=task)


def test_what_does_not_fit_the_model_is_counted_by_task(opened):
  limits = {}
  adapter = harness.adapter(opened, limits)
  assert opened.context == 256
  adapter.loglikelihood(
    [instance("a", "x" * 254, " y"), instance("a", "x" * 255, " y"), instance("b", "x", " y")]
  )
  texts = adapter.generate_until(
    [
      instance("b", "x", {"max_gen_toks": 128, "until": []}),
      instance("b", "x", {"max_gen_toks": 129, "until": ["z"]}),
      instance("b", "x" * 250, {"until": []}),
      instance(None, "x", {"max_new_tokens": 4}),
    ]
  )
  assert len(texts) == 4
  assert limits == {"a": Limits(2, 1, 0), "b": Limits(4, 1, 2), "": Limits(1, 0, 0)}
  assert harness.limit_notes(limits, opened.context) == [
    "note: a: of 2 requests the contexts of 1 lost their beginning; the model's context is 256 "
    "tokens",
    "note: b: of 4 requests the contexts of 1 lost their beginning and the answers of 2 were "
    "bounded by 128 tokens; the "
    "model's context is 256 tokens",
  ]
