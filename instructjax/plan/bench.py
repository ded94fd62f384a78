"""`instructjax bench`: how fast a stage runs, against the limits of this machine, on random
weights.

Reported for each stage: seconds of every repeat (the first call, which compiles, apart), rates,
peak memory, and the share of the machine's limit: max(FLOP / measured FLOP per second, bytes /
measured bytes per second) over the median time.  With `text` every SFT step takes a new batch
through the whole pipeline, and how long it waited for them is reported. FLOPs are counted by
hand from the shapes (2 per multiply-add, backward twice the forward), bytes as weights read once
a pass. Dimensions: B batch, P prompt, R response, T = P + R, K completions, D width, V
vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from instructjax import optim, ppo, reward, sft, steps
from instructjax.data.batches import corpora, lazy, packing, pipeline, prefetch
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError
from instructjax.models import freeze, gpt, llama, lora
from instructjax.rollout import Sampling, sample
from instructjax.system import memory
from instructjax.types import LM, Comparisons, Demonstrations, Frozen, Params, Prompts


@dataclass(frozen=True)
class Bench:
  """What to measure; 0 takes the default of the stage."""

  stage: str
  shape: str = "gpt-5m"
  batch: int = 0
  prompt: int = 32
  response: int = 64
  length: int = 256  # tokens of an SFT row
  completions: int = 2  # K of a reward row, each prompt + response tokens long
  epochs: int = 1
  minibatches: int = 8
  ptx: int = 0  # pretraining rows an episode
  dtype: str = "float32"
  # Of the matrices of PPO's reference and reward model, and of what `top` and `lora` freeze
  frozen_dtype: str = "float32"
  top: int = 0  # SFT trains only this many blocks from the top; 0 trains everything
  remat: str = "none"  # what the backward pass computes again
  unroll: int = 8  # layers a step of the scan
  lora: int = 0  # rank of the adapter of sft and ppo; 0 trains all weights
  text: str = (
    ""  # SFT takes documents of this source, read lazily and packed; "" one batch again and again
  )
  tokenizer: str = "bytes"  # of that text
  repeats: int = 5


SHAPES: dict[str, Callable[..., LM]] = {
  "gpt-5m": lambda **kw: gpt.gpt(dataclasses.replace(gpt.GPT_5M, **kw)),
  "smollm2-135m": lambda **kw: llama.llama(dataclasses.replace(llama.SMOLLM2_135M, **kw)),
}
BATCH = {"sft": 16, "reward": 32, "rollout": 64, "ppo": 64}


def machine(size: int = 2048) -> tuple[float, float]:
  """(FLOP/s of a float32 matrix product, bytes/s of a copy), the best of five."""

  def best(run: Callable, *args) -> float:
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(run(*args))
      times.append(time.perf_counter() - start)
    return min(times)

  x = jnp.ones((size, size), jnp.float32)
  big = jnp.ones((64 << 20,), jnp.float32)
  flops = 2 * size**3 / best(jax.jit(lambda a: a @ a), x)
  return flops, 2 * big.nbytes / best(jax.jit(lambda a: a + 1), big)


def block_weights(lm: LM) -> int:
  """Weights of all blocks that take part in matrix products."""
  leaves = jax.tree.leaves(lm.table["blocks"], is_leaf=lambda x: hasattr(x, "axes"))
  return sum(math.prod(leaf.shape) for leaf in leaves if len(leaf.shape) > 2)


def forward(lm: LM, rows: int, length: int, predicted: int) -> float:
  """FLOPs of one forward pass over rows x length tokens with logits at `predicted` positions of
  each row.
  """
  attention = (
    2 * 2 * lm.depth * lm.width * length / 2
  )  # scores and mix of a token, half of them masked
  return rows * (
    length * (2 * block_weights(lm) + attention) + 2 * predicted * lm.vocab_size * lm.width
  )


def passes(b: Bench) -> int:
  """Forward passes that a gradient costs: with an adapter the gradients of the matrices are left
  out (its own are small).
  """
  return 2 if b.lora else 3


def decode_cost(lm: LM, b: Bench, rows: int, weight_bytes: int) -> tuple[float, float]:
  """(FLOPs, bytes) of sampling: every step reads all weights and the cache."""
  weights = (block_weights(lm) + lm.vocab_size * lm.width) * weight_bytes
  return forward(lm, rows, b.prompt + b.response, b.response), weights * b.response


def prompts_of(lm: LM, rows: int, length: int) -> Prompts:
  tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, lm.vocab_size)
  return Prompts(tokens, jnp.ones_like(tokens, bool))


def parts(lm: LM, b: Bench) -> tuple[Params, Params, Params]:
  """(trunk, start, trained), as `trainable.part` makes them.  Raises UserError for both `top` and
  `lora`.
  """
  params = lm.init(jax.random.key(0))
  if b.lora and b.top:
    raise UserError(f"bench: --lora={b.lora} and --top={b.top}: choose one of the two")
  if not b.lora:
    trunk, trained = freeze.split(params, b.top or None, dtype=b.frozen_dtype)
    return trunk, trained, trained
  sizes = lora.sizes(lm.table, lora.Lora(b.lora))
  return (
    freeze.base(params, b.frozen_dtype),
    {},
    {"adapter": lora.init(jax.random.key(1), lm.table, sizes)},
  )


def bench_sft(lm: LM, b: Bench, rows: int):
  tokens = jax.random.randint(jax.random.key(1), (rows, b.length), 0, lm.vocab_size)
  real = jnp.ones_like(tokens, bool)
  batch = Demonstrations(tokens, real, real.at[:, 0].set(False))
  tx = optim.adamw(1e-4)
  trunk, _, trained = parts(lm, b)
  state = steps.init_state(jax.random.key(0), trained, tx)
  step = steps.compiled(partial(sft.sft_step, lm=lm, tx=tx), state)
  whole = forward(lm, rows, b.length, b.length - 1)
  if not b.top:
    return step, state, (trunk, batch), {"tokens": rows * b.length}, (passes(b) * whole, 0.0)
  unembed = forward(lm, rows, 0, b.length - 1) * (
    2 if "head" in trained else 1
  )  # a tied embedding is not trained
  back = 2 * (forward(lm, rows, b.length, 0) * b.top / lm.depth) + unembed
  return step, state, (trunk, batch), {"tokens": rows * b.length}, (whole + back, 0.0)


def bench_reward(lm: LM, b: Bench, rows: int):
  length, k = b.prompt + b.response, b.completions
  tokens = jax.random.randint(jax.random.key(1), (rows, k, length), 0, lm.vocab_size)
  rank = jnp.tile(jnp.arange(1, k + 1, dtype=jnp.int32), (rows, 1))
  batch = Comparisons(tokens, jnp.ones_like(tokens, bool), rank)
  tx = optim.adamw(1e-4)
  params = reward.init(jax.random.key(0), lm, lm.init(jax.random.key(0)))
  state = steps.init_state(jax.random.key(0), params, tx)
  step = steps.compiled(partial(reward.reward_step, lm=lm, tx=tx), state)
  counts = {"pairs": rows * k * (k - 1) // 2, "tokens": rows * k * length}
  return step, state, ({}, batch), counts, (3 * forward(lm, rows * k, length, 0), 0.0)


def bench_rollout(lm: LM, b: Bench, rows: int, weight_bytes: int = 4):
  params = lm.init(jax.random.key(0))
  cfg = Sampling(response=b.response)
  prompts = prompts_of(lm, rows, b.prompt)
  run = jax.jit(
    lambda key, params, prompts: (key + 1, sample(lm, params, prompts, jax.random.key(key), cfg))
  )
  counts = {"sampled tokens": rows * b.response, "episodes": rows}
  return run, jnp.int32(0), (params, prompts), counts, decode_cost(lm, b, rows, weight_bytes)


def bench_ppo(lm: LM, b: Bench, rows: int, weight_bytes: int = 4):
  tx = optim.by_subtree(policy=optim.adamw(1e-6, eps=1e-5), value=optim.adamw(1e-6, eps=1e-5))
  cfg = ppo.PPOConfig(
    epochs=b.epochs, minibatches=b.minibatches, ptx_coef=1.0 if b.ptx else 0.0, ema_decay=None
  )
  config = ppo.PPO(lm=lm, tx=tx, sampling=Sampling(response=b.response), cfg=cfg)
  trunk, start, trained = parts(lm, b)
  model, value = (reward.init(jax.random.key(0), lm, part) for part in (start, trained))
  state = steps.init_state(jax.random.key(0), ppo.init_params(trained, value), tx, kl_coef=0.02)
  frozen = Frozen(
    trunk, ref=freeze.cast(start, b.frozen_dtype), reward=freeze.cast(model, b.frozen_dtype)
  )
  step = steps.compiled(partial(ppo.iteration, ppo=config), state)
  length = b.prompt + b.response
  text = None
  if b.ptx:
    tokens = jax.random.randint(jax.random.key(2), (rows * b.ptx, length), 0, lm.vocab_size)
    text = Demonstrations(tokens, jnp.ones_like(tokens, bool), jnp.ones_like(tokens, bool))
  flops, read = decode_cost(lm, b, rows, weight_bytes)
  scoring = 2 * forward(lm, rows, length, b.response) + 2 * forward(lm, rows, length, 0)
  update = passes(b) * (forward(lm, rows, length, b.response) + forward(lm, rows, length, 0))
  mix = passes(b) * forward(lm, rows * b.ptx, length, length - 1)
  counts = {"episodes": rows, "sampled tokens": rows * b.response}
  prompts = prompts_of(lm, rows, b.prompt)
  return (
    step,
    state,
    (frozen, prompts, text),
    counts,
    (flops + scoring + b.epochs * (update + mix), read),
  )


@contextlib.contextmanager
def fed(
  lm: LM, b: Bench, rows: int, args: tuple
) -> Iterator[tuple[Callable[[int], tuple], Callable[[], float]]]:
  """(the arguments of repeat i, seconds waited for them): with `text` the last one is a new batch,
  made as a stage makes it.
  """
  if not b.text:
    yield lambda i: args, lambda: 0.0
    return
  tokenizer = tokenizers.fit(tokenizers.by_reference(b.tokenizer), lm.vocab_size)
  found = lazy.texts(b.text)
  pieces = lazy.pieces(found, lazy.index(found, tokenizer), tokenizer, b.length)
  pad = partial(packing.pad_packed, length=b.length)
  batches = pipeline.stream(packing.pack(pieces, b.length, pieces.sizes), pad, size=rows, seed=0)
  with prefetch.ahead(corpora.placed(batches), stop=b.repeats + 1) as feed:
    yield lambda i: (*args[:-1], feed.batch(i)), feed.waited


STAGES = {"sft": bench_sft, "reward": bench_reward, "rollout": bench_rollout, "ppo": bench_ppo}


def compilations(step: Any) -> int:
  """How many versions of a jitted function were compiled."""
  return step._cache_size()


def measure(b: Bench) -> dict:
  """Runs one stage `repeats` times after a first call that compiles.

  Raises:
    UserError: unknown stage or shape, a batch that the minibatches do not divide, an adapter in
    another stage than sft or ppo.
  """
  if b.stage not in STAGES:
    raise UserError(f"bench: unknown stage {b.stage!r}; choose one of {', '.join(STAGES)}")
  if b.shape not in SHAPES:
    raise UserError(f"bench: unknown shape {b.shape!r}; choose one of {', '.join(SHAPES)}")
  if b.top and b.stage != "sft":
    raise UserError(f"bench: --top={b.top} is measured for sft only, not for {b.stage}")
  rows = b.batch or BATCH[b.stage]
  if b.stage == "ppo" and rows % b.minibatches:
    raise UserError(
      f"bench: a batch of {rows} does not split into {b.minibatches} minibatches; make it a "
      "multiple"
    )
  if b.text and b.stage != "sft":
    raise UserError(f"bench: --text={b.text} feeds sft only, not {b.stage}; leave it out")
  if b.lora and b.stage not in ("sft", "ppo"):
    raise UserError(f"bench: --lora={b.lora} is for sft and ppo, not for {b.stage}; leave it out")
  lm = SHAPES[b.shape](dtype=b.dtype, remat=b.remat, unroll=b.unroll)
  step: Any
  step, state, args, counts, (flops, read) = STAGES[b.stage](lm, b, rows)
  seconds = []
  with fed(lm, b, rows, args) as (inputs, waited):
    for i in range(b.repeats + 1):
      start = time.perf_counter()
      state, out = step(state, *inputs(i))
      jax.block_until_ready((state, out))
      seconds.append(time.perf_counter() - start)
      memory.release()
    waits = (
      {"data_wait_s": waited() / b.repeats, "data_wait_share": waited() / sum(seconds[1:])}
      if b.text
      else {}
    )
  first, seconds = seconds[0], seconds[1:]
  peak = memory.peak_gb()
  flop_rate, byte_rate = machine()
  median = statistics.median(seconds)
  return {
    **dataclasses.asdict(b),
    "batch": rows,
    "jax": jax.__version__,
    "device": jax.devices()[0].device_kind,
    "seconds": seconds,
    "median_s": median,
    "first_call_s": first,
    "compile_s": max(first - median, 0.0),
    **{f"{name}/s": count / median for name, count in counts.items()},
    "peak_rss_gb": peak,
    "flops": flops,
    "machine_flops_per_s": flop_rate,
    "machine_bytes_per_s": byte_rate,
    "limit_s": max(flops / flop_rate, read / byte_rate),
    "share_of_limit": max(flops / flop_rate, read / byte_rate) / median,
    "compilations": compilations(step),
    **waits,
  }


def main(b: Bench, *, as_json: bool = False) -> None:
  """Measures and prints: a short table, or one JSON object with the seconds of every repeat."""
  result = measure(b)
  if as_json:
    print(json.dumps(result))
    return
  print(
    f"{b.stage} {b.shape} {b.dtype}, batch {result['batch']}, {result['device']}, jax "
    f"{result['jax']}"
  )
  spread = f"{min(result['seconds']):.3f} to {max(result['seconds']):.3f}"
  print(
    f"  median of {b.repeats}   {result['median_s']:.3f} s ({spread}); first call "
    f"{result['first_call_s']:.1f} s"
  )
  for name in [name for name in result if name.endswith("/s")]:
    print(f"  {name:<16} {result[name]:,.0f}")
  if b.text:
    print(
      f"  waits for data   {1e3 * result['data_wait_s']:.1f} ms a step, "
      f"{100 * result['data_wait_share']:.2f} %"
    )
  print(f"  peak memory      {result['peak_rss_gb']:.2f} GB")
  print(
    f"  machine          {result['machine_flops_per_s'] / 1e9:.0f} GFLOP/s float32, "
    f"{result['machine_bytes_per_s'] / 1e9:.0f} GB/s; limit {result['limit_s']:.3f} s, "
    f"reached {100 * result['share_of_limit']:.0f} %"
  )
