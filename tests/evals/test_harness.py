"""What lm-evaluation-harness asks for and a model has no room for is counted; tests/parity holds
the harness itself.
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


def asked(task, *arguments):
  return SimpleNamespace(args=arguments, task_name=task)


def test_what_does_not_fit_the_model_is_counted_by_task(opened):
  limits = {}
  adapter = harness.adapter(opened, limits)
  assert opened.context == 256
  adapter.loglikelihood(
    [asked("a", "x" * 254, " y"), asked("a", "x" * 255, " y"), asked("b", "x", " y")]
  )
  texts = adapter.generate_until(
    [
      asked("b", "x", {"max_gen_toks": 128, "until": []}),
      asked("b", "x", {"max_gen_toks": 129, "until": ["z"]}),
      asked("b", "x" * 250, {"until": []}),
      asked(None, "x", {"max_new_tokens": 4}),
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
