"""What a policy says to the test prompts, and the measures of each response.

Dimensions: N prompts, B rows of a batch, P prompt, R response, T = P + R.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

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
from instructjax.system import keys
from instructjax.types import LM, Array, Key, Params, Prompts, Rollout

# Prompts that are answered together.
BATCH = 64


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
  settings: QuickstartSettings,
  trained: Trained,
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

  # Compiled here and not in `answer`, which is called for every policy.
  @jax.jit
  def sample(
    trunk: Params,
    policy: Params,
    prompts: Prompts,
    key: Key[Array, ""],
  ) -> Rollout:
    return rollout.sample(trained.lm, trunk | policy, prompts, key, sampling)

  measure = jax.jit(partial(measures, trained.lm, sampling))

  def answer(policy: Params, prompts: Sequence[Prompt]) -> Answers:
    rows = pipeline.prompts(prompts, trained.tokenizer, prompt=settings.prompt)
    pad = partial(pipeline.pad_prompts, length=settings.prompt)
    texts: list[str] = []
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    batches = pipeline.once(rows, pad, size=BATCH)
    for number, (batch, real) in enumerate(batches):
      batch_key = keys.run_key(settings.seed, "quickstart answers", number)
      responses = sample(trained.trunk, policy, batch, batch_key)
      values = measure(
        trained.trunk,
        trained.reward_models,
        policy,
        trained.reference,
        responses,
      )
      # The last batch is filled up with prompts that were answered before.
      for name, column in values.items():
        columns[name].append(np.asarray(column, np.float64)[:real])
      on_host = jax.device_get(responses)
      texts += rewards.responses(trained.tokenizer, on_host)[:real]
    # A response begins with the space that parts it from its prompt.
    texts = [text.strip() for text in texts]

    # The lexicon reads the texts, and everything else the ids.
    follows = []
    for prompt, text in zip(prompts, texts, strict=True):
      follows.append(tone_measures.follows(prompt, text))
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Answers(
      texts=texts,
      scores={name: whole[name] for name in trained.reward_models},
      kl=whole["kl"],
      length=whole["length"],
      ended=whole["ended"],
      follows=np.asarray(follows, np.float64),
    )

  return answer


def measures(
  lm: LM,
  sampling: Sampling,
  trunk: Params,
  reward_models: dict[str, Params],
  policy: Params,
  reference: Params,
  rows: Rollout,
) -> dict[str, Float[Array, " B"]]:
  """Returns the KL, the length, the end and the scores of B responses."""
  # The trunk reads the responses once for the policy, its reference and the reward models.
  # A reward model reads an end of text where a response was cut; the others never look there.
  closed = reward.closed(rows, sampling.eos)
  stem = None
  if "lower" in trunk:
    stem = lm.stem(trunk, closed, rows.valid)

  def logp(trained_part: Params) -> Float[Array, "B R"]:
    values, _ = likelihood.response_logp(
      lm,
      trunk | trained_part,
      rows.tokens,
      rows.valid,
      sampling.response,
      temperature=sampling.temperature,
      banned=sampling.banned,
      stem=stem,
    )
    return values

  # Nats a response, at the temperature of the sampler.
  log_ratio = logp(policy) - logp(reference)
  values = {
    "kl": (log_ratio * rows.mask).sum(1),
    "length": rows.mask.sum(1),
    "ended": rows.ended,
  }
  for name, reward_model in reward_models.items():
    whole = reward.join(trunk, reward_model)
    values[name] = reward.score(lm, whole, closed, rows.valid, stem=stem)
  return values
