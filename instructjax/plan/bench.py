"""`instructjax bench`: how fast a stage runs on random weights, against the limits of this machine.

What is timed is the stage as a run has it: the same wiring (`stages.wiring.Stage`), the same
compiled step, and batches that a thread makes ahead. Only the data are random, unless SFT is given
documents to read. Prompts and responses have the lengths that `plan.lengths` draws, other ones in
every repeat: a response ends by its schedule, whatever is sampled. By default all are full.

The report holds the seconds of every repeat, with the first call, which compiles, apart. It also
holds rates, the peak of the memory, and the share of the machine's limit that the median reaches.
The limit is a lower bound of the seconds of a step,

    max(FLOPs / measured FLOPs per second, bytes / measured bytes per second),

with the FLOPs of all matrix products and the bytes of the weights that they read. Both are counted
on the traced parts of the step at full length (`plan.counting`), and of that the share counts which
real tokens have (`plan.useful`). Rates count real tokens alone.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructjax import models, settings, steps
from instructjax.data.batches import branches, corpora, pipeline, prefetch
from instructjax.data.batches.pipeline import Host
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError, naming
from instructjax.models import gpt, heads, llama
from instructjax.plan import counting, lengths, useful
from instructjax.plan.lengths import Lengths
from instructjax.plan.meter import costs_of
from instructjax.ppo import PPO
from instructjax.rollout import Sampling, useful_share
from instructjax.runs import origin
from instructjax.stages import dpo, grpo, ppo, pretrain_sft, reward, running
from instructjax.stages.wiring import Stage
from instructjax.system import jsons, keys, memory
from instructjax.types import (
  LM,
  Demonstrations,
  Frozen,
  Params,
  Prompts,
  PyTree,
  Rollout,
  TrainState,
)

SHAPES: Mapping[str, gpt.GPTConfig | llama.LlamaConfig] = {
  "gpt-5m": gpt.GPT_5M,
  "smollm2-135m": llama.SMOLLM2_135M,
}
# The rows of a batch where none are asked for: prompts, or the documents of SFT.
ROWS = {
  "sft": 16,
  "reward": 32,
  "rollout": 64,
  "ppo": 64,
  "dpo": 32,
  "grpo": 16,
}
# The optimizer updates of a pass where none are asked for: those of a run.
MINIBATCHES = {
  "ppo": 8,
  "grpo": 1,
}


@dataclass(frozen=True)
class Bench:
  """What to measure."""

  stage: str
  shape: str = "gpt-5m"
  batch: int = 0  # rows, prompts or episodes; 0 takes the number of the stage in `ROWS`
  prompt: int = 32  # tokens
  response: int = 64  # tokens
  length: int = 256  # tokens of an SFT row
  completions: int = 2  # K of a reward row, each prompt + response tokens long
  n: int = 4  # responses to each prompt of GRPO
  epochs: int = 1
  minibatches: int = 0  # 0 takes the number of the stage in `MINIBATCHES`
  ptx: int = 0  # rows of pretraining text an episode
  dtype: str = "float32"
  # The type of the reference and of the reward model, and of what `top` and `lora` do not train.
  frozen_dtype: str = "float32"
  top: int = 0  # trains only this many blocks from the top; 0 trains everything
  remat: str = "none"  # what the backward pass computes again
  unroll: int = 8  # layers in a step of the scan
  lora: int = 0  # rank of an adapter that is trained; 0 trains the weights
  # SFT reads documents of this source lazily and packs them; "" repeats one random batch.
  text: str = ""
  tokenizer: str = "bytes"  # of that text
  lengths: str = "full"  # the source of the lengths of prompts and responses (`plan.lengths`)
  repeats: int = 5


class Work(NamedTuple):
  """A stage that is ready to run.

  stage          the wiring
  state, frozen  where it starts
  batches        batch i, by name
  counts         what call i of the step makes or reads, for the rates: real tokens alone
  shares         of each part, the share that the rows of call i are of its work at full length
  real           the share of real positions in those of the rows of call i at full length
  """

  stage: Stage
  state: TrainState
  frozen: PyTree
  batches: Callable[[int], dict[str, Any]]
  counts: Callable[[int], Mapping[str, int]]
  shares: Callable[[int], Mapping[str, useful.Share]]
  real: Callable[[int], float]


# --- settings ---


def rows_of(b: Bench) -> int:
  """The rows of a batch."""
  return b.batch or ROWS[b.stage]


def minibatches_of(b: Bench) -> int:
  """The optimizer updates of a pass over the episodes; 1 where the stage has none."""
  return b.minibatches or MINIBATCHES.get(b.stage, 1)


def settings_of(
  b: Bench,
  stage: str,
  changes: dict[str, Any],
) -> Any:
  """The settings of a stage of training; `changes` are those that only this stage has.

  They start from the smallest preset. Its `model.shape` is not read: the shapes of `SHAPES` are
  not all shapes that a run can start from without weights.

  Raises:
    UserError: for a value out of its range, and for `top` together with `lora`.
  """
  common = {
    "batch": rows_of(b),
    "top": b.top or None,
    "lora.rank": b.lora,
    "trunk_dtype": b.frozen_dtype,
    "model.dtype": b.dtype,
    "model.remat": b.remat,
    "model.unroll": b.unroll,
  }
  preset = settings.preset(stage, "tiny")
  return settings.replaced(preset, common | changes)


def optimizer(lr: float, eps: float = 1e-8) -> dict[str, Any]:
  """The settings of an AdamW whose rate is constant, so that all steps cost the same."""
  return {
    "lr": lr,
    "schedule": "constant",
    "eps": eps,
  }


def text_settings(b: Bench) -> settings.PretrainSettings:
  """The settings of SFT's step on packed documents, which are read when they are needed."""
  changes = {
    "data.text": b.text,
    "data.valid": "",
    "data.length": b.length,
    "data.lazy": True,
    "data.pack": True,
    "optimizer": optimizer(1e-4),
  }
  return settings_of(b, "pretrain", changes)


def sft_settings(b: Bench) -> settings.SFTSettings:
  """The settings of SFT on rows of `length` tokens, all of which carry loss."""
  prompt = b.length // 2  # where the prompt ends does not matter, as it carries loss too
  changes = {
    "data.prompt": prompt,
    "data.response": b.length - prompt,
    "loss_on_prompt": True,
    "model.dropout": 0.0,  # the stages that the others measure have none either
    "optimizer": optimizer(1e-4),
  }
  return settings_of(b, "sft", changes)


def reward_settings(b: Bench) -> settings.RewardSettings:
  """The settings of reward model training on `completions` texts a prompt."""
  changes = {
    "data.prompt": b.prompt,
    "data.response": b.response,
    "optimizer": optimizer(1e-4),
  }
  return settings_of(b, "reward", changes)


def dpo_settings(b: Bench) -> settings.DPOSettings:
  """The settings of DPO on `completions` texts a prompt."""
  changes = {
    "data.prompt": b.prompt,
    "data.response": b.response,
    "frozen_dtype": b.frozen_dtype,
    "optimizer": optimizer(1e-6),
  }
  return settings_of(b, "dpo", changes)


def ppo_settings(b: Bench) -> settings.PPOSettings:
  """The settings of PPO, or of PPO-ptx where there is pretraining text."""
  # A rollout makes no updates, and its episodes need not divide into minibatches.
  minibatches = 1 if b.stage == "rollout" else minibatches_of(b)
  changes = {
    "data.prompt": b.prompt,
    "data.length": b.prompt + b.response,
    "sampling.response": b.response,
    "iterations": b.repeats + 1,
    "frozen_dtype": b.frozen_dtype,
    "ptx_ratio": b.ptx or 1,
    "ppo.ptx_coef": 1.0 if b.ptx else 0.0,
    "ppo.epochs": b.epochs,
    "ppo.minibatches": minibatches,
    "ppo.ema_decay": None,
    "policy_optimizer": optimizer(1e-6, eps=1e-5),
    "value_optimizer": optimizer(1e-6, eps=1e-5),
  }
  return settings_of(b, "ppo", changes)


def grpo_settings(b: Bench) -> settings.GRPOSettings:
  """The settings of GRPO on `n` responses to each prompt."""
  changes = {
    "data.prompt": b.prompt,
    "sampling.response": b.response,
    "iterations": b.repeats + 1,
    "n": b.n,
    "frozen_dtype": b.frozen_dtype,
    "grpo.epochs": b.epochs,
    "grpo.minibatches": minibatches_of(b),
    "optimizer": optimizer(1e-6),
  }
  return settings_of(b, "grpo", changes)


# --- stages ---


def language_model(b: Bench) -> LM:
  """The model that is timed."""
  config = dataclasses.replace(
    SHAPES[b.shape],
    dtype=b.dtype,
    remat=b.remat,
    unroll=b.unroll,
  )
  return models.build(config)


def random_ids(seed: int, number: int, sizes: np.ndarray, ids: int) -> list[np.ndarray]:
  """Random tokens below `ids`, so many for each row: always the same for a seed and a number."""
  rng = np.random.default_rng([seed, number])
  return [rng.integers(0, ids, size, np.int32) for size in sizes]


class Rows(NamedTuple):
  """The lengths of the rows of every call of a step.

  draw   number of the call -> its lengths
  full   the same rows at full length
  """

  draw: Callable[[int], Lengths]
  full: Lengths

  def real(self, number: int) -> float:
    """The share of real positions in those of the rows at full length."""
    return useful.tokens(self.draw(number)) / useful.tokens(self.full)

  def share(
    self,
    number: int,
    flops: Callable[[Lengths], float],
    read: Callable[[Lengths], float] = useful.tokens,
  ) -> useful.Share:
    """The share of the rows of a call in the work at full length (`useful.share_of`)."""
    return useful.share_of(flops, read, self.draw(number), self.full)


def rows_at(b: Bench, count: int, prompt: int, response: int) -> Rows:
  """The lengths of `count` rows a call under these limits.

  Raises:
    UserError: as `lengths.draws` says.
  """
  draw = lengths.draws(b.lengths, prompt, response)
  full = lengths.draws("full", prompt, response)
  return Rows(lambda number: draw(number, count), full(0, count))


def start_sft(b: Bench, lm: LM) -> Work:
  """SFT on random rows, or on new documents in every step."""
  if b.text:
    return start_on_text(b, lm)
  config = sft_settings(b)
  stage = pretrain_sft.wire(config, lm, b.repeats + 1)
  state, trunk = running.start(stage, 0, origin.random_params(lm, 0))
  rows = rows_at(b, rows_of(b), config.data.prompt, config.data.response)
  model = useful.model_of(lm)

  def batch(number: int) -> dict[str, Any]:
    prompt, response = rows.draw(number)
    tokens = random_ids(1, number, prompt + response, lm.vocab_size)
    demonstrations = [pipeline.Row(ids, start=1) for ids in tokens]
    prepared = pretrain_sft.Prepared(demonstrations, [], [], [], None, {}, {})
    return pretrain_sft.batches_of(config, prepared, lm, trunk)(0)

  def flops(part: Lengths) -> float:
    size = part.prompt.astype(np.float64) + part.response
    return float(np.sum(model.trunk(size) + model.unembedding * size))

  return Work(
    stage,
    state,
    trunk,
    batch,
    lambda number: {"tokens": useful.tokens(rows.draw(number))},
    lambda number: {"sft": rows.share(number, flops)},
    rows.real,
  )


def start_on_text(b: Bench, lm: LM) -> Work:
  """SFT on new documents in every step."""
  # Pretraining and SFT are one wiring, and it is pretraining that has settings for text.
  config = text_settings(b)
  tokenizer = tokenizers.by_reference(b.tokenizer)
  tokenizer = tokenizers.fit(tokenizer, lm.vocab_size)
  with naming("--text", b.text):
    sources = pretrain_sft.read_records(config)
    rows = pretrain_sft.prepare(config, sources, tokenizer, None)
  stage = pretrain_sft.wire(config, lm, b.repeats + 1, window=rows.window)
  state, trunk = running.start(stage, 0, origin.random_params(lm, 0))
  batches = pretrain_sft.batches_of(config, rows, lm, trunk)
  counts = {"tokens": rows_of(b) * b.length}
  shares = {"pretrain": useful.Share(1.0, 1.0)}
  return Work(
    stage,
    state,
    trunk,
    batches,
    lambda number: counts,
    lambda number: shares,
    lambda number: 1.0,
  )


def start_reward(b: Bench, lm: LM) -> Work:
  """Reward model training on random batches, in which every prompt ranks K completions."""
  config = reward_settings(b)
  comparisons = random_comparisons(b, lm.vocab_size, learnt=False)
  stage = reward.wire(config, lm, b.repeats + 1, comparisons.layout)
  return start_on_rankings(b, lm, stage, comparisons)


def start_dpo(b: Bench, lm: LM) -> Work:
  """DPO on random batches, in which every prompt ranks K completions."""
  config = dpo_settings(b)
  comparisons = random_comparisons(b, lm.vocab_size, learnt=True)
  stage = dpo.wire(config, lm, b.repeats + 1, comparisons.layout)
  return start_on_rankings(b, lm, stage, comparisons)


class Comparing(NamedTuple):
  """Random comparisons.

  groups   number of the call -> its prompts with their completions
  layout   the shape of a batch, which is that of the groups of all calls, as in a run
  """

  groups: Callable[[int], list[branches.Branches]]
  layout: branches.Layout


def random_groups(b: Bench, part: Lengths, number: int, ids: int) -> list[pipeline.Group]:
  """Prompts with random completions of the ranks 1 to K, which all begin with the prompt's tokens.

  Of the K prompts that are drawn with the completions of one, the first counts.
  """
  K = b.completions
  prompts = random_ids(1, number, part.prompt[::K], ids)
  responses = random_ids(2, number, part.response, ids)
  groups = []
  for i, prompt in enumerate(prompts):
    texts = [np.concatenate([prompt, response]) for response in responses[i * K : (i + 1) * K]]
    rows = tuple(pipeline.Row(ids, start=len(prompt)) for ids in texts)
    groups.append(pipeline.Group(rows, ranks=tuple(range(1, K + 1))))
  return groups


def rankings_at(b: Bench) -> Rows:
  """The lengths of the comparisons of a call: a prompt and a response for each completion."""
  return rows_at(b, rows_of(b) * b.completions, b.prompt, b.response)


def random_comparisons(b: Bench, ids: int, *, learnt: bool) -> Comparing:
  """Random comparisons of drawn lengths; `learnt` is whether a policy learns the completions."""
  rows = rankings_at(b)

  def groups(number: int) -> list[branches.Branches]:
    random = random_groups(b, rows.draw(number), number, ids)
    return [branches.of_group(group, learnt=learnt) for group in random]

  all_groups = [group for number in range(b.repeats + 1) for group in groups(number)]
  return Comparing(groups, branches.layout(all_groups, rows_of(b), shards=1))


def start_on_rankings(b: Bench, lm: LM, stage: Stage, comparisons: Comparing) -> Work:
  """A stage on random comparisons."""
  K = b.completions
  pairs = rows_of(b) * math.comb(K, 2)
  layout = comparisons.layout
  state, frozen = running.start(stage, 0, origin.random_params(lm, 0))
  rows = rankings_at(b)
  flops = partial(
    useful.comparison_flops,
    useful.model_of(lm),
    completions=K,
    logits=layout.learnt > 0,
  )
  tokens = partial(useful.comparison_tokens, completions=K)

  def batch(number: int) -> dict[str, Any]:
    return {"comparisons": branches.pack(comparisons.groups(number), layout)}

  return Work(
    stage,
    state,
    frozen,
    batch,
    lambda number: {"pairs": pairs, "tokens": tokens(rows.draw(number))},
    lambda number: {stage.name: rows.share(number, flops, tokens)},
    lambda number: tokens(rows.draw(number)) / tokens(rows.full),
  )


def experiment_of(b: Bench, lm: LM) -> PPO:
  """PPO with a reward model of the policy's shape."""
  # No id ends a response: only a schedule does.
  sampling = Sampling(response=b.response)
  return ppo.experiment_of(ppo_settings(b), lm, lm, sampling)


def wire_ppo(b: Bench, lm: LM) -> Stage:
  """The PPO stage with a reward model of the policy's shape and base."""
  return ppo.wire(ppo_settings(b), experiment_of(b, lm), shares_trunk=True)


def prompts_of(b: Bench, part: Lengths, number: int, ids: int) -> Prompts:
  """Random prompts of these lengths with the schedule of their responses.

  At full length there is none: a response then stops at its limit, and has no end.
  """
  rows = [pipeline.Row(tokens, start=0) for tokens in random_ids(1, number, part.prompt, ids)]
  prompts = pipeline.pad_prompts(rows, length=b.prompt)
  if b.lengths == "full":
    return prompts
  ends: Host = part.response
  return dataclasses.replace(prompts, ends=ends)


def text_of(b: Bench, ids: int) -> Demonstrations | None:
  """Random text for PPO-ptx, all of it real; None where there is none."""
  if not b.ptx:
    return None
  length = b.prompt + b.response
  sizes = np.full(b.ptx * rows_of(b), length)
  rows = [pipeline.Row(tokens, start=1) for tokens in random_ids(3, 0, sizes, ids)]
  return pipeline.pad_demonstrations(rows, length=length)


def start_ppo(b: Bench, lm: LM) -> Work:
  """PPO on random prompts, and on text where there is any."""
  # The reward model is the policy with a scalar head: to times it does not matter what it says.
  params = origin.random_params(lm, 0)
  head = heads.init_head(keys.run_key(0, "head"), lm.width)
  stage = wire_ppo(b, lm)
  state, frozen = running.start(stage, 0, params, params, head)
  return work_on_prompts(b, lm, stage, state, frozen)


def start_rollout(b: Bench, lm: LM) -> Work:
  """The first part of PPO's iteration, which samples, on a state that holds the policy alone."""
  stage = wire_ppo(b, lm)
  rollout = stage.parts[0]
  assert rollout.name == "rollout"

  def init(key: Any, params: Params) -> tuple[TrainState, Frozen]:
    state = steps.new_state(key, {"policy": params}, optax.identity())
    return state, Frozen(trunk={}, ref={}, reward={})

  def step(
    state: TrainState,
    frozen: Frozen,
    batch: dict[str, Any],
  ) -> Any:
    rows = rollout.function(state, frozen, batch["prompts"])
    # The key follows from the number of updates, so that each call samples other responses.
    # The weights are donated and passed on, which copies nothing.
    return dataclasses.replace(state, step=state.step + 1), rows

  stage = stage._replace(init=init, step=step, parts=(rollout,))
  state, frozen = running.start(stage, 0, origin.random_params(lm, 0))
  return work_on_prompts(b, lm, stage, state, frozen)


def start_grpo(b: Bench, lm: LM) -> Work:
  """GRPO on random prompts, whose rewards cost nothing."""
  config = grpo_settings(b)
  # No id ends a response: only a schedule does.
  sampling = Sampling(response=b.response, n=b.n)
  stage = grpo.wire(config, grpo.experiment_of(config, lm, sampling))
  state, frozen = running.start(stage, 0, origin.random_params(lm, 0))
  return work_on_prompts(b, lm, stage, state, frozen)


def work_on_prompts(b: Bench, lm: LM, stage: Stage, state: TrainState, frozen: Frozen) -> Work:
  """PPO, its rollout alone, or GRPO, on random prompts and the same text in every call."""
  rows = rows_at(b, rows_of(b), b.prompt, b.response)
  model = useful.model_of(lm)
  text = text_of(b, lm.vocab_size)
  text_rows, length = b.ptx * rows_of(b), b.prompt + b.response
  responses = b.n if b.stage == "grpo" else 1
  work = useful.GRPO if b.stage == "grpo" else useful.PPO

  def batch(number: int) -> dict[str, Any]:
    prompts = prompts_of(b, rows.draw(number), number, lm.vocab_size)
    return {"prompts": prompts} if b.stage == "grpo" else {"prompts": prompts, "text": text}

  def update_flops(part: Lengths) -> float:
    text_flops = useful.text_flops(model, text_rows, length)
    return useful.update_flops(model, part, work) + text_flops

  # The responses to a prompt have one length, so the work of a prompt is a share of the same work
  # at full length, however many they are. In the rollout alone a prompt is read once for all.
  def shares(number: int) -> dict[str, useful.Share]:
    return {
      # The weights are read for each token of a response that is sampled.
      "rollout": rows.share(
        number,
        partial(useful.rollout_flops, model, responses=responses),
        lambda part: float(part.response.sum()),
      ),
      "scoring": rows.share(number, partial(useful.scoring_flops, model, work=work)),
      "update": rows.share(
        number,
        update_flops,
        lambda part: useful.tokens(part) + text_rows * length,
      ),
    }

  def counts(number: int) -> dict[str, int]:
    part = rows.draw(number)
    return {
      "episodes": responses * len(part.prompt),
      "sampled tokens": responses * int(part.response.sum()),
      "tokens": responses * useful.tokens(part),
    }

  return Work(stage, state, frozen, batch, counts, shares, rows.real)


STAGES: Mapping[str, Callable[[Bench, LM], Work]] = {
  "sft": start_sft,
  "reward": start_reward,
  "rollout": start_rollout,
  "ppo": start_ppo,
  "dpo": start_dpo,
  "grpo": start_grpo,
}


# --- costs and limits ---


class Limit(NamedTuple):
  """The useful work of a call, and its least seconds on this machine."""

  flops: float
  seconds: float


def limit_of(
  costs: Mapping[str, counting.Cost],
  shares: Mapping[str, useful.Share],
  flop_rate: float,
  byte_rate: float,
) -> Limit:
  """The limit of a call whose rows are these shares of what its parts cost at full length."""
  flops = sum(cost.flops * shares[name].flops for name, cost in costs.items())
  read = sum(cost.weight_bytes * shares[name].bytes for name, cost in costs.items())
  return Limit(flops, max(flops / flop_rate, read / byte_rate))


def fastest(
  function: Callable[[jax.Array], jax.Array],
  x: jax.Array,
) -> float:
  """The seconds of the fastest of five calls, after one that compiles."""
  compiled = jax.jit(function)
  jax.block_until_ready(compiled(x))
  seconds = []
  for _ in range(5):
    begun = time.perf_counter()
    jax.block_until_ready(compiled(x))
    seconds.append(time.perf_counter() - begun)
  return min(seconds)


def machine_rates(size: int = 2048) -> tuple[float, float]:
  """Returns (FLOPs per second of a float32 matrix product, bytes per second of a copy)."""
  square = jnp.ones((size, size), jnp.float32)
  flops = 2 * size**3  # a multiplication and an addition
  flop_rate = flops / fastest(lambda x: x @ x, square)

  long = jnp.ones(64 << 20, jnp.float32)  # 256 MiB, more than any cache holds
  moved = 2 * long.nbytes  # read once and written once
  byte_rate = moved / fastest(lambda x: x + 1, long)
  return flop_rate, byte_rate


# --- the measurement ---


def check(b: Bench) -> None:
  """Raises UserError for what no settings of a stage can say; their own ranges come after it."""
  if b.stage not in STAGES:
    raise UserError(f"bench: unknown stage {b.stage!r}; choose one of {', '.join(STAGES)}")
  if b.shape not in SHAPES:
    raise UserError(f"bench: unknown shape {b.shape!r}; choose one of {', '.join(SHAPES)}")
  if b.repeats < 1:
    raise UserError(f"bench: --repeats={b.repeats} measures nothing; give 1 or more")
  if b.text and b.lengths != "full":
    raise UserError(f"bench: --lengths={b.lengths} draws rows, and --text={b.text} reads them")
  if b.text and b.stage != "sft":
    raise UserError(f"bench: --text={b.text} feeds sft only, not {b.stage}; leave it out")
  if b.stage == "grpo" and b.ptx:
    raise UserError(f"bench: --ptx={b.ptx} is text of PPO-ptx, and grpo learns from none")
  if b.stage == "rollout" and (b.top or b.lora):
    option = f"--top={b.top}" if b.top else f"--lora={b.lora}"
    raise UserError(f"bench: {option} says what is trained, and a rollout trains nothing")


def measure(b: Bench) -> dict[str, Any]:
  """Runs a stage `repeats` times, after a first call that compiles, and returns the report.

  Raises:
    UserError: for an unknown stage or shape, an option that the stage does not have, and a value
      that its settings refuse, such as a batch that the minibatches do not divide.
  """
  check(b)
  work = STAGES[b.stage](b, language_model(b))
  stage, state, frozen = work.stage, work.state, work.frozen
  run = running.programs_of(stage, state)
  batch: dict[str, Any] = {}
  seconds = []
  metrics: list[dict[str, float]] = []
  calls = b.repeats + 1
  with prefetch.ahead(corpora.place_batches(work.batches), stop=calls) as feed:
    for number in range(calls):
      begun = time.perf_counter()
      batch = feed.batch(number)
      values = batch
      for program in run.early:
        values = program(state, frozen, values)
      state, outputs = run.last(state, frozen, values)
      jax.block_until_ready((state, outputs))
      seconds.append(time.perf_counter() - begun)
      metrics.append(useful_metrics(outputs))
      memory.release()
  peak = memory.peak_gb()  # before the machine itself is measured, which takes memory too
  compilations = max(program._cache_size() for program in run.jitted)
  costs = costs_of(stage, state, frozen, batch)
  flop_rate, byte_rate = machine_rates()
  first, *repeats = seconds
  numbers = range(1, calls)
  limits = [limit_of(costs, work.shares(number), flop_rate, byte_rate) for number in numbers]
  median = statistics.median(repeats)
  report = dataclasses.asdict(b) | {
    "batch": rows_of(b),
    "minibatches": minibatches_of(b),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "seconds": repeats,
    "median_s": median,
    "first_call_s": first,
    "compile_s": max(first - median, 0.0),
  }
  counts = [work.counts(number) for number in numbers]
  for name in counts[0]:
    rates = [count[name] / taken for count, taken in zip(counts, repeats, strict=True)]
    report[f"{name}/s"] = statistics.median(rates)
  # The share of the positions that were computed, of each part that says so.
  for name in metrics[0]:
    report[name] = statistics.median(values[name] for values in metrics[1:])
  shares = [limit.seconds / taken for limit, taken in zip(limits, repeats, strict=True)]
  report |= {
    "real_share": statistics.fmean(work.real(number) for number in numbers),
    "peak_rss_gb": peak,
    "flops": statistics.median(limit.flops for limit in limits),
    "machine_flops_per_s": flop_rate,
    "machine_bytes_per_s": byte_rate,
    "limit_s": statistics.median(limit.seconds for limit in limits),
    "share_of_limit": statistics.median(shares),
    "compilations": compilations,
  }
  if b.text:
    report["data_wait_s"] = feed.waited() / b.repeats
    report["data_wait_share"] = feed.waited() / sum(repeats)
  return report


def useful_metrics(outputs: Any) -> dict[str, float]:
  """The shares of useful positions among the metrics of a step, or that of a rollout alone."""
  if isinstance(outputs, Rollout):
    return {"rollout/useful": float(useful_share(outputs))}
  return {name: float(value) for name, value in outputs.items() if name.endswith("useful")}


def main(b: Bench, *, as_json: bool = False) -> None:
  """Measures a stage and prints a short table, or one JSON object with all of the report."""
  report = measure(b)
  if as_json:
    print(jsons.text_with_nulls(report))
  else:
    print(table(report))


def table(report: Mapping[str, Any]) -> str:
  """The report as lines to read."""
  least = min(report["seconds"])
  most = max(report["seconds"])
  lines = [
    f"{report['stage']} {report['shape']} {report['dtype']}, batch {report['batch']}, "
    f"{report['device']}, jax {report['jax']}",
    f"  median of {report['repeats']}   {report['median_s']:.3f} s "
    f"({least:.3f} to {most:.3f}); first call {report['first_call_s']:.1f} s",
  ]
  for name, value in report.items():
    if name.endswith("/s"):  # the rates
      lines.append(f"  {name:<16} {value:,.0f}")
  if report["lengths"] != "full":
    real = f"{100 * report['real_share']:.0f} % of the padded positions are real"
    parts = [name for name in report if name.endswith("useful")]
    computed = [f"{100 * report[name]:.0f} % of {name.partition('/')[0]}" for name in parts]
    lines.append(f"  {'useful':<16} {', '.join([*computed, real])}")
  if report["text"]:
    wait = 1e3 * report["data_wait_s"]
    share = 100 * report["data_wait_share"]
    lines.append(f"  waits for data   {wait:.1f} ms a step, {share:.2f} %")
  lines.append(f"  peak memory      {report['peak_rss_gb']:.2f} GB")
  gflops = report["machine_flops_per_s"] / 1e9
  gigabytes = report["machine_bytes_per_s"] / 1e9
  lines.append(
    f"  machine          {gflops:.0f} GFLOP/s float32, {gigabytes:.0f} GB/s; "
    f"limit {report['limit_s']:.3f} s, reached {100 * report['share_of_limit']:.0f} %"
  )
  return "\n".join(lines)
