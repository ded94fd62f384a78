"""What a policy says to the test prompts.

Dimensions: N prompts, B rows of a batch, P prompt, R response, T = P + R.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from instructjax import likelihood, rewards, rollout
from instructjax.data.batches import pipeline
from instructjax.data.public import tone
from instructjax.data.records.records import Demonstration, Prompt
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.quickstart import rows
from instructjax.quickstart.models import Trained
from instructjax.rollout import Sampling
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import keys
from instructjax.types import LM, Array, Key, Params, Prompts, Rollout

# Answers whose log-probabilities are computed together: all of their logits are in memory.
BATCH = 64


class Answers(NamedTuple):
  """The responses of one policy, one to each test prompt.

  texts     the responses
  kl        log π(y|x) - log π_ref(y|x), in nats a response
  length    tokens, the end of the response included
  ended     1 where the response ended before its limit
  """

  texts: list[str]
  kl: Float[np.ndarray, " N"]
  length: Float[np.ndarray, " N"]
  ended: Float[np.ndarray, " N"]


class Answerer(NamedTuple):
  """What is compiled once, for all policies.

  draw      (policy, prompts, number=0) -> the responses of a policy, on the host
  texts     (responses) -> their texts
  measure   (responses) -> the answers with their measures
  """

  draw: Callable[..., Rollout]
  texts: Callable[[Rollout], list[str]]
  measure: Callable[[Rollout], Answers]


def answerer(settings: QuickstartSettings, trained: Trained) -> Answerer:
  """Returns how policies answer.

  Every policy is sampled with the same key. Another number of the draw gives other answers to the
  same prompts.
  """
  sampling = sampling_of(settings, trained.tokenizer, trained.template)
  # All prompts are answered at once, as the episodes of PPO are: nothing waits for a slot.
  prompts_in_all = len(tone.TEST) * settings.test_prompts
  sampling = dataclasses.replace(sampling, slots=prompts_in_all)

  # Compiled here and not in `draw`, which is called for every policy.
  @jax.jit
  def sample(
    trunk: Params,
    policy: Params,
    prompts: Prompts,
    key: Key[Array, ""],
  ) -> Rollout:
    return rollout.sample(trained.lm, trunk | policy, prompts, key, sampling)

  log_ratio = jax.jit(partial(log_ratios, trained.lm, sampling))

  def draw(policy: Params, prompts: Sequence[Demonstration], number: int = 0) -> Rollout:
    asked = [Prompt(prompt.prompt, turns=prompt.turns) for prompt in prompts]
    tokens = pipeline.prompts(
      asked, trained.tokenizer, prompt=settings.prompt, template=trained.template
    )
    padded = pipeline.pad_prompts(tokens, length=settings.prompt)
    key = keys.run_key(settings.seed, "quickstart answers", number)
    return jax.device_get(sample(trained.trunk, policy, padded, key))

  def texts(responses: Rollout) -> list[str]:
    return [text.strip() for text in rewards.responses(trained.tokenizer, responses)]

  def measure(responses: Rollout) -> Answers:
    kl = []
    for batch, real in rows.batches(responses, len(responses.ended), BATCH):
      of_batch = log_ratio(trained.trunk, trained.reference, batch)
      kl.append(np.asarray(of_batch, np.float64)[:real])
    return Answers(
      texts(responses),
      np.concatenate(kl),
      np.asarray(responses.mask, np.float64).sum(1),
      np.asarray(responses.ended, np.float64),
    )

  return Answerer(draw, texts, measure)


def sampling_of(
  settings: QuickstartSettings, tokenizer: Tokenizer, template: chat.Template | None
) -> Sampling:
  """Returns how answers are sampled, which is how PPO samples its episodes."""
  return Sampling(
    response=settings.response,
    temperature=settings.temperature,
    halvings=settings.halvings,
    eos=chat.ends(tokenizer, template),
    banned=tokenizer.banned,
  )


def log_ratios(
  lm: LM,
  sampling: Sampling,
  trunk: Params,
  reference: Params,
  responses: Rollout,
) -> Float[Array, " B"]:
  """Returns log π(y|x) - log π_ref(y|x) of B responses, at the temperature of the sampler."""
  # What the policy gives its tokens is known since they were sampled.
  logp, _ = likelihood.response_logp(
    lm,
    trunk | reference,
    responses.tokens,
    responses.valid,
    sampling.response,
    temperature=sampling.temperature,
    banned=sampling.banned,
  )
  return ((responses.logp - logp) * responses.mask).sum(1)
