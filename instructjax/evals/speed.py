"""`instructjax bench --stage=eval`: how fast evaluations score and generate, beside references.

Both sides work on random weights and the same budget of tokens a batch. The references are what
training runs: a forward pass with log-probabilities at every position of full rows, and
`rollout.sample` of full prompts. The evaluation has texts of uneven lengths; only real tokens
count. Choices are scored four to a question, and count the tokens of rows that do not share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import likelihood, rollout, settings
from instructjax.evals import subject
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import Answer, Generate, Likelihood, Request
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.runs.origin import Origin
from instructjax.types import Demonstrations, Prompts

ROWS = 256  # requests of each kind
SHORTEST, LONGEST = 32, 256  # tokens of a row of the evaluation; the references' rows are LONGEST
ANSWER = 8  # tokens of a continuation that is scored
RESPONSE = 64  # tokens of a response that is sampled
CHOICES = 4  # answers of a question
ORDER = ("forward", "scored", "choices", "sampler", "generated")  # within a round
RATIOS = (
  ("scored", "forward"),
  ("choices", "forward"),
  ("generated", "sampler"),
)


class Work(NamedTuple):
  """What is timed: a function, and the tokens that count for a call of it."""

  tokens: int
  run: Callable[[], Any]


def measure(
  shape: str,
  dtype: str,
  budget: int,
  repeats: int,
  seed: int = 0,
) -> dict[str, Any]:
  """Returns tokens a second of the evaluation and of the references, and their ratios.

  Args:
    shape: the shape of the random weights.
    dtype: the dtype of the computation.
    budget: the tokens of a batch.
    repeats: the rounds, of which the medians are taken.
    seed: the seed of the weights and the texts.
  """
  changes = {
    "model.shape": shape,
    "model.tokenizer": origin.BYTES,
    "model.dtype": dtype,
    "tokens": budget,
    "model.unroll": 8,
  }
  config = settings.replaced(settings.load("eval"), changes)
  model = origin.open_model("", config.model, seed)
  opened = subject.open_subject("", config, 1)
  rng = np.random.default_rng(seed)
  # The evaluation draws its texts first: the order decides which texts a seed stands for.
  evaluation = _evaluation(opened, rng)
  references = _references(model, budget, rng)
  works = references | evaluation
  ordered_works = {name: works[name] for name in ORDER}
  rates = _rates(ordered_works, repeats)

  results: dict[str, Any] = {
    "shape": shape,
    "dtype": dtype,
    "tokens a batch": budget,
    "device": jax.devices()[0].device_kind,
  }
  for name, values in rates.items():
    results[f"{name} tokens/s"] = float(np.median(values))
  for ours, reference in RATIOS:
    # Both of a round ran one after the other, so their ratio is steadier than that of the medians.
    ratios = rates[ours] / rates[reference]
    results[f"{ours} / {reference}"] = float(np.median(ratios))
  return results


def _evaluation(opened: Subject, rng: np.random.Generator) -> dict[str, Work]:
  """Returns what the evaluation does: it scores single texts, scores choices, and generates."""

  def random_text(length: int) -> str:
    # Of ASCII letters, each of which is one token of the tokenizer of bytes.
    first, last = ord("a"), ord("z")
    letters = rng.integers(first, last + 1, length)
    return "".join(map(chr, letters))

  lengths = rng.integers(SHORTEST, LONGEST - ANSWER, ROWS)
  contexts = [random_text(length) for length in lengths]

  def random_likelihood(context: str) -> Likelihood:
    continuation = random_text(ANSWER)
    return Likelihood(context, continuation)

  single = [[random_likelihood(context)] for context in contexts]
  # As many continuations as before, for a quarter of the contexts.
  questions = contexts[::CHOICES]
  choices = [[random_likelihood(question) for _ in range(CHOICES)] for question in questions]
  generations = []
  for context in contexts:
    request = Generate(context, RESPONSE, 1.0, stop=())
    generations.append([request])

  # Sampling is seeded by batch, so that every round generates as many tokens as this one.
  completions = _answers(opened, generations)
  generated_tokens = sum(completion.tokens for completion in completions)
  return {
    "scored": Work(_size(single), lambda: _answers(opened, single)),
    "choices": Work(_size(choices), lambda: _answers(opened, choices)),
    "generated": Work(generated_tokens, lambda: _answers(opened, generations)),
  }


def _references(model: Origin, budget: int, rng: np.random.Generator) -> dict[str, Work]:
  """Returns what training does with the same budget of tokens."""
  vocabulary = model.lm.vocab_size
  rows = max(budget // LONGEST, 1)

  def random_ids(rows: int, width: int) -> jax.Array:
    ids = rng.integers(0, vocabulary, (rows, width))
    return jnp.asarray(ids, jnp.int32)

  tokens = random_ids(rows, LONGEST)
  valid = jnp.ones_like(tokens, bool)
  batch = Demonstrations(tokens, valid, valid)
  forward = jax.jit(partial(likelihood.masked_logp, model.lm))

  width = (SHORTEST + LONGEST) // 2  # of a prompt, the mean of the evaluation's
  rows = max(budget // (width + RESPONSE), 1)
  prompt_ids = random_ids(rows, width)
  prompts = Prompts(prompt_ids, jnp.ones_like(prompt_ids, bool))
  tokenizer = model.tokenizer
  cfg = Sampling(RESPONSE, eos=tokenizer.eos, banned=tokenizer.banned)
  sample = jax.jit(partial(rollout.sample, model.lm, cfg=cfg))

  def run_sampler() -> Any:
    return sample(model.params, prompts, jax.random.key(0))

  sampled_tokens = int(run_sampler().mask.sum())
  return {
    "forward": Work(tokens.size, lambda: forward(model.params, batch)),
    "sampler": Work(sampled_tokens, run_sampler),
  }


def _size(requests: Sequence[Sequence[Likelihood]]) -> int:
  """Returns the tokens of these texts, which are letters, one a byte."""
  size = 0
  for choices in requests:
    for choice in choices:
      size += len(choice.context) + len(choice.continuation)
  return size


def _answers(opened: Subject, requests: Sequence[Sequence[Request]]) -> list[Answer]:
  """Returns the answers of all requests, batch by batch; planning counts as time too."""
  rows = opened.rows(enumerate(requests))
  answers: list[Answer] = []
  for number, batch in enumerate(opened.plan(rows)):
    answers += opened.answer(batch, number)
  return answers


def _rates(work: Mapping[str, Work], repeats: int) -> dict[str, np.ndarray]:
  """Returns the tokens a second of each work in each round.

  A round does every work once, so that what slows the machine slows all of them.
  """
  for _, run in work.values():
    result = run()  # compiles
    jax.block_until_ready(result)
  rates: dict[str, list[float]] = {name: [] for name in work}
  for _ in range(repeats):
    for name, (tokens, run) in work.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds = time.perf_counter() - start
      rates[name].append(tokens / seconds)
  return {name: np.array(values) for name, values in rates.items()}


def main(
  shape: str,
  dtype: str,
  budget: int,
  repeats: int,
) -> None:
  """Measures and prints a line for each number."""
  results = measure(shape, dtype, budget, repeats)
  for name, value in results.items():
    if isinstance(value, float):
      places = 2 if "/ " in name else 0  # a ratio, or tokens a second
      text = f"{value:,.{places}f}"
    else:
      text = str(value)
    print(f"  {name:<20} {text}")
