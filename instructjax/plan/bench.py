"""`instructjax bench`: how fast a stage runs on random weights, against the limits of this machine.

What is timed is the stage as a run has it: the same wiring (`stages.wiring.Stage`), the same
compiled step, and batches that a thread makes ahead. Only the data are random, unless SFT is given
documents to read.

The report holds the seconds of every repeat, with the first call, which compiles, apart. It also
holds rates, the peak of the memory, and the share of the machine's limit that the median reaches.
The limit is a lower bound of the seconds of a step,

    max(FLOPs / measured FLOPs per second, bytes / measured bytes per second),

with the FLOPs of all matrix products and the bytes of the weights that they read. Both are counted
on the traced step (`plan.counting`).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructjax import models, settings, steps
from instructjax.data.batches import branches, corpora, prefetch
from instructjax.data.batches.pipeline import Group, Row
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError, naming
from instructjax.models import gpt, heads, llama
from instructjax.plan import counting, programs
from instructjax.rollout import Sampling
from instructjax.runs import origin
from instructjax.stages import dpo, ppo, pretrain_sft, reward, running
from instructjax.stages.wiring import Stage
from instructjax.system import jsons, keys, memory
from instructjax.types import (
  LM,
  Frozen,
  Params,
  PyTree,
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
  epochs: int = 1
  minibatches: int = 8
  ptx: int = 0  # rows of pretraining text an episode
  dtype: str = "float32"
  # The type of PPO's reference and reward model, and of what `top` and `lora` do not train.
  frozen_dtype: str = "float32"
  top: int = 0  # trains only this many blocks from the top; 0 trains everything
  remat: str = "none"  # what the backward pass computes again
  unroll: int = 8  # layers in a step of the scan
  lora: int = 0  # rank of an adapter that is trained; 0 trains the weights
  # SFT reads documents of this source lazily and packs them; "" repeats one random batch.
  text: str = ""
  tokenizer: str = "bytes"  # of that text
  repeats: int = 5


class Work(NamedTuple):
  """A stage that is ready to run.

  stage          the wiring
  state, frozen  where it starts
  batches        batch i, by name
  counts         what a call of the step makes or reads, for the rates
  """

  stage: Stage
  state: TrainState
  frozen: PyTree
  batches: Callable[[int], dict[str, Any]]
  counts: Mapping[str, int]


# --- settings ---


def rows_of(b: Bench) -> int:
  """The rows of a batch."""
  return b.batch or ROWS[b.stage]


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
  minibatches = 1 if b.stage == "rollout" else b.minibatches
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


def random_batch(shapes: PyTree, ids: int) -> PyTree:
  """Arrays of these shapes: random tokens below `ids`, all of them real and marked.

  The rows of a packed batch are one segment each.
  """

  def array(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.dtype == jnp.bool_ or jax.tree_util.keystr(path).endswith(".valid"):
      return jnp.ones(leaf.shape, leaf.dtype)
    # One key does for all leaves: nothing is measured that depends on the tokens.
    key = keys.run_key(0, "benchmark")
    return jax.random.randint(key, leaf.shape, 0, ids, leaf.dtype)

  return jax.tree_util.tree_map_with_path(array, shapes)


def start(
  stage: Stage,
  counts: dict[str, int],
  ids: int,
  *parameters: Params,
) -> Work:
  """A stage on models with random weights, which takes one random batch again and again."""
  state, frozen = running.start(stage, 0, *parameters)
  batch = random_batch(stage.batch, ids)
  return Work(stage, state, frozen, lambda number: batch, counts)


def start_sft(b: Bench, lm: LM) -> Work:
  """SFT on one random batch, or on new documents in every step."""
  params = origin.random_params(lm, 0)
  counts = {"tokens": rows_of(b) * b.length}
  calls = b.repeats + 1
  if not b.text:
    stage = pretrain_sft.wire(sft_settings(b), lm, calls)
    return start(stage, counts, lm.vocab_size, params)

  # Pretraining and SFT are one wiring, and it is pretraining that has settings for text.
  config = text_settings(b)
  tokenizer = tokenizers.by_reference(b.tokenizer)
  tokenizer = tokenizers.fit(tokenizer, lm.vocab_size)
  with naming("--text", b.text):
    sources = pretrain_sft.read_records(config)
    rows = pretrain_sft.prepare(config, sources, tokenizer, None)
  stage = pretrain_sft.wire(config, lm, calls, window=rows.window)
  state, trunk = running.start(stage, 0, params)
  batches = pretrain_sft.batches_of(config, rows, lm, trunk)
  return Work(stage, state, trunk, batches, counts)


def start_reward(b: Bench, lm: LM) -> Work:
  """Reward model training on one random batch, in which every prompt ranks K completions."""
  config = reward_settings(b)
  layout = reward.planned_layout(config, b.completions)
  stage = reward.wire(config, lm, b.repeats + 1, layout)
  return start_on_rankings(b, lm, stage, layout)


def start_dpo(b: Bench, lm: LM) -> Work:
  """DPO on one random batch, in which every prompt ranks K completions."""
  config = dpo_settings(b)
  layout = reward.planned_layout(config, b.completions, learnt=True)
  stage = dpo.wire(config, lm, b.repeats + 1, layout)
  return start_on_rankings(b, lm, stage, layout)


def start_on_rankings(b: Bench, lm: LM, stage: Stage, layout: branches.Layout) -> Work:
  """A stage on one random batch of comparisons, whose completions have the ranks 1 to K."""
  counts = {
    "pairs": rows_of(b) * math.comb(b.completions, 2),
    "tokens": rows_of(b) * layout.length,
  }
  params = origin.random_params(lm, 0)
  state, frozen = running.start(stage, 0, params)
  random = np.random.default_rng(0)
  groups = []
  for _ in range(rows_of(b)):
    prompt = random.integers(0, lm.vocab_size, b.prompt, np.int32)
    answers = random.integers(0, lm.vocab_size, (b.completions, b.response), np.int32)
    rows = tuple(Row(np.concatenate([prompt, answer]), b.prompt) for answer in answers)
    group = Group(rows, tuple(range(1, b.completions + 1)))
    groups.append(branches.of_group(group, learnt=layout.learnt > 0))
  comparisons = branches.pack(groups, layout)
  return Work(stage, state, frozen, lambda number: {"comparisons": comparisons}, counts)


def wire_ppo(b: Bench, lm: LM) -> Stage:
  """The PPO stage with a reward model of the policy's shape and base."""
  config = ppo_settings(b)
  # No id ends a response, so that every iteration samples, scores and learns all tokens.
  sampling = Sampling(response=b.response)
  experiment = ppo.experiment_of(config, lm, lm, sampling)
  return ppo.wire(config, experiment, shares_trunk=True)


def start_ppo(b: Bench, lm: LM) -> Work:
  """PPO on one batch of random prompts, and of text where there is any."""
  counts = {
    "episodes": rows_of(b),
    "sampled tokens": rows_of(b) * b.response,
  }
  # The reward model is the policy with a scalar head: to times it does not matter what it says.
  params = origin.random_params(lm, 0)
  head = heads.init_head(keys.run_key(0, "head"), lm.width)
  stage = wire_ppo(b, lm)
  return start(stage, counts, lm.vocab_size, params, params, head)


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
  counts = {
    "sampled tokens": rollout.tokens,
    "episodes": rows_of(b),
  }
  params = origin.random_params(lm, 0)
  return start(stage, counts, lm.vocab_size, params)


STAGES: Mapping[str, Callable[[Bench, LM], Work]] = {
  "sft": start_sft,
  "reward": start_reward,
  "rollout": start_rollout,
  "ppo": start_ppo,
  "dpo": start_dpo,
}


# --- costs and limits ---


def cost_of(
  step: Any,
  stage: Stage,
  state: TrainState,
  frozen: PyTree,
  batch: PyTree,
) -> counting.Cost:
  """What a call of a compiled step costs."""
  kinds = (
    programs.kinds_of_state(state),
    programs.label("frozen", frozen),
    programs.label("other", batch),
  )
  weights = [kind in ("params", "frozen") for kind in jax.tree.leaves(kinds)]
  # The loop that samples has no length in the program: it ends when all rows have ended.
  trips = max(part.trips for part in stage.parts)
  traced = step.trace(state, frozen, batch)
  return counting.count(traced.jaxpr, weights, trips)


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
  if b.text and b.stage != "sft":
    raise UserError(f"bench: --text={b.text} feeds sft only, not {b.stage}; leave it out")
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
  start_stage = STAGES[b.stage]
  stage, state, frozen, batches, counts = start_stage(b, language_model(b))
  step: Any = steps.compiled(stage.step, state)
  batch: dict[str, Any] = {}
  seconds = []
  calls = b.repeats + 1
  with prefetch.ahead(corpora.place_batches(batches), stop=calls) as feed:
    for number in range(calls):
      begun = time.perf_counter()
      batch = feed.batch(number)
      state, outputs = step(state, frozen, batch)
      jax.block_until_ready((state, outputs))
      seconds.append(time.perf_counter() - begun)
      memory.release()
  peak = memory.peak_gb()  # before the machine itself is measured, which takes memory too
  compilations = step._cache_size()
  cost = cost_of(step, stage, state, frozen, batch)
  flop_rate, byte_rate = machine_rates()
  limit = max(cost.flops / flop_rate, cost.weight_bytes / byte_rate)
  first, *repeats = seconds
  median = statistics.median(repeats)
  report = dataclasses.asdict(b) | {
    "batch": rows_of(b),
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "seconds": repeats,
    "median_s": median,
    "first_call_s": first,
    "compile_s": max(first - median, 0.0),
  }
  for name, count in counts.items():
    report[f"{name}/s"] = count / median
  report |= {
    "peak_rss_gb": peak,
    "flops": cost.flops,
    "machine_flops_per_s": flop_rate,
    "machine_bytes_per_s": byte_rate,
    "limit_s": limit,
    "share_of_limit": limit / median,
    "compilations": compilations,
  }
  if b.text:
    report["data_wait_s"] = feed.waited() / b.repeats
    report["data_wait_share"] = feed.waited() / sum(repeats)
  return report


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
