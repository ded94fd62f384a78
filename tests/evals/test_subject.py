"""Answers that are over before their last token: what a model that rambles costs, and says."""

import numpy as np
import pytest

from instructjax import rollout
from instructjax.evals import answers, grounding, hallucination, subject
from instructjax.evals.behaviours import tasks
from instructjax.evals.tasks import Generate
from instructjax.settings import reading

PROMPTS = ("Say", "Say it again", "No")


@pytest.fixture
def opened():
  fields = [("model.dtype", "float32"), ("tokens", "1024"), ("template", "")]
  return subject.open_subject("", reading.override(reading.load("eval"), fields), 1)


@pytest.fixture
def steps(monkeypatch):
  """The tokens that each call of the sampler may draw for a row."""
  calls = []
  sample = rollout.sample

  def counted(lm, params, prompts, key, cfg):
    calls.append(cfg.response)
    return sample(lm, params, prompts, key, cfg=cfg)

  monkeypatch.setattr(rollout, "sample", counted)
  return calls


def asked(opened, is_over, tokens=100):
  requests = [[Generate(prompt, tokens, stop=(), is_over=is_over)] for prompt in PROMPTS]
  return [reply.answers[0][0] for reply in subject.ask(opened, requests)]


def test_an_answer_in_parts_is_the_answer(opened, steps):
  """The random model never ends: without an end all 100 tokens are drawn, the same in parts."""
  whole = asked(opened, None)
  parts = asked(opened, lambda text: False)
  assert steps == [100, 32, 32, 36] and [each.tokens for each in whole] == [100] * 3
  assert parts == whole
  assert subject.parts_of(32) == [32] and subject.parts_of(5) == [5]
  assert sum(subject.parts_of(200)) == 200


def test_an_answer_that_is_over_is_not_sampled_to_its_last_token(opened, steps):
  over = asked(opened, lambda text: len(text) >= 5)
  assert steps == [32]
  assert [(each.tokens, each.ended) for each in over] == [(32, True)] * 3
  whole = asked(opened, None)
  assert all(long.text.startswith(short.text[:-1]) for short, long in zip(over, whole, strict=True))
  # One row goes on, the others do not.
  longest = max(asked(opened, None, 32), key=lambda each: each.text).text
  some = asked(opened, lambda text: not text.startswith(longest))
  assert sorted(each.tokens for each in some) == [32, 32, 100]


def test_stored_answers_stay_valid():
  plain = Generate("a", 8, stop=())
  assert answers._question(plain) == ["Generate", "a", 8, 0.0, (), 1]
  assert answers._question(plain._replace(is_over=str)) == answers._question(plain)
  nucleus = answers._question(plain._replace(top_p=0.9))
  assert nucleus == ["Generate", "a", 8, 0.0, (), 1, 0.9, 0]


@pytest.mark.parametrize(
  ("text", "over"),
  [
    ("\n\nThe towns are in Peru", False),
    ("The towns are:\n\n", False),
    ("The towns are:\n\nLima", False),
    ("The towns are in Peru.\n\n", True),
    ("The towns are in Peru.\n\nAnd more", True),
  ],
)
def test_when_a_grounded_answer_is_over(text, over):
  (task,) = hallucination.open_suite(reading.load("eval")).tasks
  (request,) = task.ask(task.items[0])
  assert request.is_over(text) == over
  # Nothing that follows changes what is scored.
  if over:
    assert grounding.until(f"{text} Rubbish.\n\n9".strip(), "\n\n").strip() == (
      grounding.until(text.strip(), "\n\n").strip()
    )


@pytest.mark.parametrize(
  ("text", "over"),
  [
    ("Paris.", False),
    ("Paris.\n\nIt is in France.", False),
    ("Paris.\nQ: And Italy?", False),  # the first paragraph goes on
    ("Paris.\n\nQ: And Italy?", True),
    ("Paris.\nQ: And Italy?\n\nA: Rome", True),
  ],
)
def test_when_a_plain_answer_is_over(text, over):
  assert tasks.is_plainly_over(text) == over
  (task,) = tasks.hedging(str(tasks.__file__).replace("tasks.py", "hedging.jsonl"), 1, 0)
  assert task.ask(task.items[0])[0].is_over is tasks.is_plainly_over
  if over:
    reply = lambda words: subject.Reply(((subject.Completion(words, 1, True),),))
    scores = task.score(task.items, [reply(text)])
    assert scores == task.score(task.items, [reply(f"{text}\n\nPerhaps. It depends, {np.pi}")])
