"""`instructjax bench --stage=eval`: how fast evaluations score and generate, beside the same
model's forward pass and sampler.

Both sides work on random weights and the same budget of tokens a batch.  The references are what
training runs: a forward pass with log-probabilities at every position of full rows, and
`rollout.sample` of full prompts.  The evaluation has texts of uneven lengths; only real tokens
count.  Choices are scored four to a question, and count the tokens of rows that stand by
themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import likelihood, rollout
from instructjax.evals import subject
from instructjax.evals.subject import Subject
from instructjax.evals.tasks import Completion, Generate, Likelihood, Logp, Request
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.settings import reading
from instructjax.types import Demonstrations, Prompts

ROWS, LENGTHS, ANSWER, RESPONSE, CHOICES = 256, (32, 256), 8, 64, 4
RATIOS = (("scored", "forward"), ("choices", "forward"), ("generated", "sampler"))


def measure(shape: str, dtype: str, budget: int, repeats: int, seed: int = 0) -> dict[str, Any]:
  """Tokens a second of scoring and of generation, the references, and the ratios: medians of
  `repeats` rounds.
  """
  given = {
    "model.shape": shape,
    "model.tokenizer": origin.BYTES,
    "model.dtype": dtype,
    "tokens": budget,
    "model.unroll": 8,
  }
  config = reading.override(
    reading.load("eval"), [(name, str(value)) for name, value in given.items()]
  )
  model = origin.open_model("", config.model, seed)
  opened = subject.open_subject("", config, 1)
  rng = np.random.default_rng(seed)
  text = lambda length: "".join(map(chr, rng.integers(97, 123, length)))
  contexts = [text(n) for n in rng.integers(LENGTHS[0], LENGTHS[1] - ANSWER, ROWS)]
  weighed = [[Likelihood(context, text(ANSWER))] for context in contexts]
  choices = [
    [Likelihood(context, text(ANSWER)) for _ in range(CHOICES)] for context in contexts[::CHOICES]
  ]
  drawn = [[Generate(context, RESPONSE, 1.0, stop=())] for context in contexts]

  rows = max(budget // LENGTHS[1], 1)
  tokens = jnp.asarray(rng.integers(0, model.lm.vocab_size, (rows, LENGTHS[1])), jnp.int32)
  real = jnp.ones_like(tokens, bool)
  forward = jax.jit(partial(likelihood.masked_logp, model.lm))
  width = (LENGTHS[0] + LENGTHS[1]) // 2
  asked = jnp.asarray(
    rng.integers(0, model.lm.vocab_size, (max(budget // (width + RESPONSE), 1), width)), jnp.int32
  )
  prompts = Prompts(asked, jnp.ones_like(asked, bool))
  cfg = Sampling(RESPONSE, eos=model.tokenizer.eos, banned=model.tokenizer.banned)
  sample = jax.jit(partial(rollout.sample, model.lm, cfg=cfg))
  drawn_by_sampler = int(sample(model.params, prompts, jax.random.key(0)).mask.sum())

  answers = _answered(opened, drawn)
  work: dict[str, tuple[int, Callable[[], Any]]] = {  # name -> (tokens, how they are made)
    "forward": (tokens.size, lambda: forward(model.params, Demonstrations(tokens, real, real))),
    "scored": (_size(weighed), lambda: _answered(opened, weighed)),
    "choices": (_size(choices), lambda: _answered(opened, choices)),
    "sampler": (drawn_by_sampler, lambda: sample(model.params, prompts, jax.random.key(0))),
    "generated": (sum(answer.tokens for answer in answers), lambda: _answered(opened, drawn)),
  }
  rates = _rates(work, repeats)
  found = {f"{name} tokens/s": float(np.median(values)) for name, values in rates.items()}
  ratios = {f"{a} / {b}": float(np.median(rates[a] / rates[b])) for a, b in RATIOS}
  return (
    {
      "shape": shape,
      "dtype": dtype,
      "tokens a batch": budget,
      "device": jax.devices()[0].device_kind,
    }
    | found
    | ratios
  )


def _size(requests: Sequence[Sequence[Likelihood]]) -> int:
  return sum(len(one.context) + len(one.continuation) for several in requests for one in several)


def _answered(opened: Subject, requests: Sequence[Sequence[Request]]) -> list[Logp | Completion]:
  plan = opened.plan(opened.rows(list(enumerate(requests))))
  return [answer for number, batch in enumerate(plan) for answer in opened.answer(batch, number)]


def _rates(
  work: Mapping[str, tuple[int, Callable[[], Any]]], repeats: int
) -> dict[str, np.ndarray]:
  """Tokens a second in each round; a round does every work once, so that what slows the machine
  slows all of them.
  """
  for _, run in work.values():
    jax.block_until_ready(run())
  rates: dict[str, list[float]] = {name: [] for name in work}
  for _ in range(repeats):
    for name, (tokens, run) in work.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      rates[name].append(tokens / (time.perf_counter() - start))
  return {name: np.array(values) for name, values in rates.items()}


def main(shape: str, dtype: str, budget: int, repeats: int) -> None:
  """Measures and prints."""
  for name, value in measure(shape, dtype, budget, repeats).items():
    shown = f"{value:,.{2 if '/ ' in name else 0}f}" if isinstance(value, float) else str(value)
    print(f"  {name:<20} {shown}")
