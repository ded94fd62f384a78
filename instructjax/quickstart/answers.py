"""What a policy says to the test prompts.

Dimensions: N prompts, B rows of a batch, P prompt, R response, T = P + R.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from instructjax import likelihood, rewards, rollout
from instructjax.data.batches import pipeline
from instructjax.data.records.records import Demonstration, Prompt
from instructjax.data.tokens import chat
from instructjax.quickstart.models import Trained
from instructjax.rollout import Sampling
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import keys
from instructjax.types import LM, Array, Key, Params, Prompts, Rollout

# Prompts that are answered together.
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


def answerer(settings: QuickstartSettings, trained: Trained) -> Callable[..., Answers]:
  """Returns the function (policy, prompts, draw=0) to its answers.

  The batches of every policy are sampled with the same keys, and all are compiled once. Another
  `draw` gives other answers to the same prompts.
  """
  sampling = Sampling(
    response=settings.response,
    temperature=settings.temperature,
    eos=chat.ends(trained.tokenizer, trained.template),
    banned=trained.tokenizer.banned,
  )

  # Compiled here and not in `answer`, which is called for every policy.
  @jax.jit
  def sample(
    trunk: Params,
    policy: Params,
    prompts: Prompts,
    key: Key[Array, ""],
  ) -> Rollout:
    return rollout.sample(trained.lm, trunk | policy, prompts, key, sampling)

  log_ratio = jax.jit(partial(log_ratios, trained.lm, sampling))
  pad = partial(pipeline.pad_prompts, length=settings.prompt)

  def answer(policy: Params, prompts: Sequence[Demonstration], draw: int = 0) -> Answers:
    asked = [Prompt(prompt.prompt, turns=prompt.turns) for prompt in prompts]
    rows = pipeline.prompts(
      asked, trained.tokenizer, prompt=settings.prompt, template=trained.template
    )
    texts: list[str] = []
    kl, length, ended = [], [], []
    batches = pipeline.once(rows, pad, size=BATCH)
    for number, (batch, real) in enumerate(batches):
      batch_key = keys.run_key(settings.seed, "quickstart answers", draw, number)
      responses = sample(trained.trunk, policy, batch, batch_key)
      of_batch = log_ratio(trained.trunk, trained.reference, responses)
      on_host = jax.device_get(responses)
      # The last batch is filled up with prompts that were answered before.
      texts += rewards.responses(trained.tokenizer, on_host)[:real]
      kl.append(np.asarray(of_batch, np.float64)[:real])
      length.append(on_host.mask.sum(1)[:real])
      ended.append(on_host.ended[:real])
    return Answers(
      [text.strip() for text in texts],
      np.concatenate(kl),
      np.concatenate(length).astype(np.float64),
      np.concatenate(ended).astype(np.float64),
    )

  return answer


def log_ratios(
  lm: LM,
  sampling: Sampling,
  trunk: Params,
  reference: Params,
  rows: Rollout,
) -> Float[Array, " B"]:
  """Returns log π(y|x) - log π_ref(y|x) of B responses, at the temperature of the sampler."""
  # What the policy gives its tokens is known since they were sampled.
  logp, _ = likelihood.response_logp(
    lm,
    trunk | reference,
    rows.tokens,
    rows.valid,
    sampling.response,
    temperature=sampling.temperature,
    banned=sampling.banned,
  )
  return ((rows.logp - logp) * rows.mask).sum(1)
