"""What a policy says to the test prompts, and the measures of each response.

Dimensions: N prompts, B rows of a batch, P prompt, R response, T = P + R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from instructjax import likelihood, reward, rewards, rollout
from instructjax.data.batches import pipeline
from instructjax.data.public import tone_measures
from instructjax.data.records.records import Prompt
from instructjax.quickstart.models import Trained
from instructjax.rollout import Sampling
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.types import Params, Prompts, Rollout

BATCH = 64  # prompts that are answered together


class Answers(NamedTuple):
  """The responses of one policy, one to each test prompt, with their measures.

  texts     the responses
  scores    the score of each response by the name of the reward model
  kl        log π(y|x) - log π_ref(y|x), in nats a response
  length    tokens, the end of the response included
  ended     1 where the response ended before its limit
  follows   1 where the VADER lexicon finds the tone that was asked for
  """

  texts: list[str]
  scores: dict[str, Float[np.ndarray, " N"]]
  kl: Float[np.ndarray, " N"]
  length: Float[np.ndarray, " N"]
  ended: Float[np.ndarray, " N"]
  follows: Float[np.ndarray, " N"]


def answerer(
  settings: QuickstartSettings, trained: Trained
) -> Callable[[Params, Sequence[Prompt]], Answers]:
  """Returns a function from a policy and prompts to its answers.

  The batches of every policy are sampled with the same keys, and all are compiled once.
  """
  sampling = Sampling(
    response=settings.response,
    temperature=settings.temperature,
    eos=trained.tokenizer.eos,
    banned=trained.tokenizer.banned,
  )

  @jax.jit
  def sample(trunk: Params, policy: Params, prompts: Prompts, key: Any) -> Rollout:
    return rollout.sample(trained.lm, trunk | policy, prompts, key, sampling)

  measure = jax.jit(partial(measures, trained, sampling))
  judges = trained.reward_models

  def answer(policy: Params, prompts: Sequence[Prompt]) -> Answers:
    rows = pipeline.prompts(prompts, trained.tokenizer, prompt=settings.prompt)
    pad = partial(pipeline.pad_prompts, length=settings.prompt)
    key = jax.random.key(settings.seed + 1)
    texts: list[str] = []
    parts: dict[str, list[np.ndarray]] = {}
    for number, (batch, real) in enumerate(pipeline.once(rows, pad, size=BATCH)):
      responses = sample(trained.trunk, policy, batch, jax.random.fold_in(key, number))
      values = measure(trained.trunk, judges, policy, trained.reference, responses)
      for name, column in values.items():
        # The last batch is filled up with rows that were counted before.
        parts.setdefault(name, []).append(np.asarray(column, np.float64)[:real])
      texts += rewards.responses(trained.tokenizer, jax.device_get(responses))[:real]
    texts = [text.strip() for text in texts]
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    follows = [
      tone_measures.follows(prompt, text) for prompt, text in zip(prompts, texts, strict=True)
    ]
    return Answers(
      texts=texts,
      scores={name: columns[name] for name in judges},
      kl=columns["kl"],
      length=columns["length"],
      ended=columns["ended"],
      follows=np.asarray(follows, np.float64),
    )

  return answer


def measures(
  trained: Trained,
  sampling: Sampling,
  trunk: Params,
  judges: dict[str, Params],
  policy: Params,
  reference: Params,
  rows: Rollout,
) -> dict[str, Any]:
  """Returns KL, length, end and the scores of B responses; the trunk reads them once for all."""
  lm = trained.lm
  stem = lm.stem(trunk, rows.tokens, rows.valid) if "lower" in trunk else None

  def logp(params: Params) -> Any:
    values, _ = likelihood.response_logp(
      lm,
      trunk | params,
      rows.tokens,
      rows.valid,
      sampling.response,
      temperature=sampling.temperature,
      banned=sampling.banned,
      stem=stem,
    )
    return values

  values = {
    "kl": ((logp(policy) - logp(reference)) * rows.mask).sum(1),
    "length": rows.mask.sum(1),
    "ended": rows.ended,
  }
  for name, judge in judges.items():
    whole = reward.join(trunk, judge)
    values[name] = reward.score(lm, whole, rows.tokens, rows.valid, stem=stem)
  return values
