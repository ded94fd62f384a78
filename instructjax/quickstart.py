"""The whole method on real input: SmolLM2-135M, sentences rated by people, SFT, reward model, PPO and PPO-ptx.

Every model here is the same trunk (embeddings and lower blocks, frozen, bfloat16) under its own top blocks.  The trunk is
run once over each text and its activations, the stem, are kept; training and scoring begin at the stem.  `top=None`
trains all blocks instead.

Dimensions: N rows, B batch, K completions, P prompt, R response, T = P + R, D width.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import models, optim, ppo, report, returns, reward, sft, steps, writers
from instructjax.checkpoint import Checkpoints
from instructjax.data import download, pipeline, tokenizers, tone
from instructjax.data.records import fingerprint
from instructjax.errors import UserError
from instructjax.evals import tone as evaluation
from instructjax.loop import fit
from instructjax.models import freeze
from instructjax.ppo import PPO, PPOConfig
from instructjax.reward import RewardConfig
from instructjax.rollout import Sampling
from instructjax.sft import SFTConfig
from instructjax.types import LM, Array, Demonstrations, Frozen, Params, Prompts, PyTree, TrainState


@dataclass(frozen=True)
class Quickstart:
  """Every setting.  Learning rates are larger than the paper's, as a few hundred updates of a small model need."""

  seed: int = 0
  model: str | None = None  # None fetches SmolLM2-135M-Instruct; or a folder, a .gguf file, a hub id
  top: int | None = 6  # blocks that are trained; None trains all of them
  dtype: str = "bfloat16"  # operands of matrix products; parameters, sums and losses are float32
  trunk_dtype: str = "bfloat16"  # the frozen blocks are stored so
  # Lengths in tokens.
  prompt: int = 20
  response: int = 20
  text: int = 20  # of a row of pretraining text
  # Records of each kind.
  demonstrations: int = 400
  comparisons: int = 240
  gold: int = 240
  test_prompts: int = 96  # of each of three domains
  test_comparisons: int = 40  # of each domain
  text_rows: int = 1024
  text_valid: int = 48  # rows of 64 tokens
  # SFT and rl_init: cosine to a tenth.  Paper: 16 epochs, and 2 for rl_init.
  sft_epochs: int = 2
  sft_batch: int = 16
  sft_lr: float = 2e-4
  text_share: float = 0.1  # pretraining rows beside the demonstrations of rl_init
  # Both reward models: one epoch, cosine to a tenth.
  reward_batch: int = 2  # prompts: the same texts to be praised and to be criticised
  reward_lr: float = 1e-3
  # PPO and PPO-ptx.
  iterations: int = 10
  episodes: int = 64
  minibatches: int = 4
  temperature: float = 0.7  # of the sampler and of every log-probability of PPO; paper: 1
  ppo_lr: float = 5e-4
  value_lr: float = 1e-3
  kl_coef: float = 0.05
  ptx_coef: float = 1.0  # paper: 27.8, relative to sums that it does not define
  ptx_ratio: int = 8  # rows of pretraining text an episode
  ptx_micro: int = 2
  ema_decay: float = 0.8  # of 40 updates; paper: .992 of thousands
  eos_penalty: float = 1.0  # taken from the score of a response without an end; not in the paper


FAST = Quickstart(
  demonstrations=128, comparisons=100, gold=100, test_prompts=21, test_comparisons=16, text_rows=256, text_valid=24,
  iterations=2,
)  # fmt: skip


class World(NamedTuple):
  """What every stage reads: the model in its parts, the tokenizer, the data, and the trunk as a compiled function."""

  config: Quickstart
  workdir: Path
  writer: writers.Writer
  lm: LM
  trunk: Params
  base: Params  # the trained part before any training
  tokenizer: tokenizers.Tokenizer
  tasks: tone.Tasks
  stem: Callable[[Array, Array], Array]


# --- set-up ---


def one_line(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """The same tokenizer where a new line ends a response and no other token with a line break is ever sampled."""
  newline = tokenizer.encode("\n")
  if len(newline) != 1:
    raise UserError("the quickstart ends responses with a new line, which this tokenizer spells in several tokens")
  breaks = {i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i])} - {newline[0]}
  eos = (newline[0], *(i for i in tokenizer.eos if i != newline[0]))
  return tokenizer._replace(eos=eos, banned=tuple(sorted((set(tokenizer.banned) | breaks) - set(eos))))


def open_world(config: Quickstart, workdir: Path, writer: writers.Writer) -> World:
  """Fetches and loads the model, splits it, and draws the data.  Raises UserError where any of it is not to be had."""
  loaded = models.load(config.model or download.fetch(), dtype=config.dtype)
  tokenizer = one_line(tokenizers.fit(tokenizers.load(loaded.tokenizer), loaded.lm.vocab_size))
  trunk, base = freeze.split(loaded.params, config.top, dtype=config.trunk_dtype)
  sizes = tone.Sizes(
    demonstrations=config.demonstrations,
    comparisons=config.comparisons,
    gold=config.gold,
    prompts=config.iterations * config.episodes,
    test_prompts=config.test_prompts,
    test_comparisons=config.test_comparisons,
  )
  tasks = tone.tasks(config.seed, sizes)
  compiled = jax.jit(lambda trunk, tokens, valid: loaded.lm.stem(trunk, tokens, valid).astype(jnp.bfloat16))
  stem = partial(compiled, trunk)
  return World(config, workdir, writer, loaded.lm, trunk, base, tokenizer, tasks, stem)


def with_stem(world: World, batch: PyTree, rows: int = 64) -> PyTree:
  """The batch with the stem of each of its rows, computed `rows` at a time; None where no block is frozen."""
  if "lower" not in world.trunk:
    return batch
  tokens, valid = (np.asarray(x).reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.valid))
  real = np.flatnonzero(valid.any(1))
  stem = np.zeros((*tokens.shape, world.lm.width), jnp.bfloat16)
  for at in range(0, len(real), rows):
    part = np.resize(real[at : at + rows], rows)
    stem[part] = world.stem(jnp.asarray(tokens[part]), jnp.asarray(valid[part]))
  return dataclasses.replace(batch, stem=jnp.asarray(stem.reshape(*batch.tokens.shape, -1)))


def draw(data: PyTree, size: int, seed: int) -> Callable[[int], PyTree]:
  """Batch number -> `size` rows of the data, shuffled anew each epoch."""
  rows = jax.tree.leaves(data)[0].shape[0]
  take = lambda at: jax.tree.map(lambda x: x[np.asarray(at)], data)
  return pipeline.stream(range(rows), take, size=size, seed=seed)


@contextmanager
def stage(world: World, name: str) -> Iterator[None]:
  """Adds the seconds of a stage to `seconds.json`, over all runs of the same directory."""
  start = time.perf_counter()
  yield
  path = world.workdir / "seconds.json"
  seconds = json.loads(path.read_text()) if path.is_file() else {}
  seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
  path.write_text(json.dumps(seconds))


def checkpoints(world: World, name: str) -> Checkpoints:
  return Checkpoints(world.workdir / "checkpoints" / name, keep=1)


# --- supervised stages ---


def tune(world: World, name: str, demos: Demonstrations, text: Demonstrations | None = None) -> Params:
  """SFT on demonstrations; with `text`, `text_share` more rows of pretraining text: the model that PPO starts from."""
  c = world.config
  count = c.sft_epochs * len(demos.tokens) // c.sft_batch
  tx = optim.adamw(optim.cosine(c.sft_lr, count), clip=1.0)
  state = steps.init_state(jax.random.key(c.seed), jax.tree.map(jnp.copy, world.base), tx)
  step = steps.compiled(partial(sft.sft_step, lm=world.lm, tx=tx, cfg=SFTConfig(window=c.response)), state)
  batches = draw(demos, c.sft_batch, c.seed)
  if text is not None:
    texts = draw(text, max(round(c.text_share * c.sft_batch), 1), c.seed)
    join = lambda a, b: jnp.concatenate([a, b])
    demos_only, batches = batches, lambda i: jax.tree.map(join, demos_only(i), texts(i))
  run = lambda state, batch: step(state, world.trunk, batch)
  state = fit(run, state, batches, steps=count, stage=name, writer=world.writer, checkpoints=checkpoints(world, name))
  return state.params


def widen(batch: Demonstrations, length: int) -> Demonstrations:
  """Rows padded on the right to `length`."""
  pad = lambda x: jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
  return jax.tree.map(pad, batch)


def rank(world: World, name: str, sft_params: Params, records: Sequence, demos: Demonstrations, seed: int) -> Params:
  """A reward model from the SFT model on K-wise comparisons; its bias makes the demonstrations score 0."""
  c = world.config
  groups = pipeline.comparisons(records, world.tokenizer, prompt=c.prompt, response=c.response, name=name)
  data = with_stem(world, pipeline.pad_comparisons(groups, k=tone.K[1], length=c.prompt + c.response))
  pairs = jax.tree.map(lambda x: x[: len(x) // 2 * 2].reshape(-1, 2, *x.shape[1:]), data)  # praise and criticise
  count = len(pairs.rank) * 2 // c.reward_batch
  tx = optim.adamw(optim.cosine(c.reward_lr, count), clip=1.0)
  state = steps.init_state(jax.random.key(seed), reward.init(jax.random.key(seed), world.lm, sft_params), tx)
  step = steps.compiled(partial(reward.reward_step, lm=world.lm, tx=tx, cfg=RewardConfig()), state)
  drawn = draw(pairs, c.reward_batch // 2, seed)
  batches = lambda i: jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn(i))
  run = lambda state, batch: step(state, world.trunk, batch)
  state = fit(run, state, batches, steps=count, stage=name, writer=world.writer, checkpoints=checkpoints(world, name))
  score = jax.jit(partial(reward.score, world.lm))
  scores = [
    score(reward.join(world.trunk, state.params), part.tokens, part.valid, stem=part.stem)
    for part in (jax.tree.map(lambda x, at=at: x[at : at + 64], demos) for at in range(0, len(demos.tokens), 64))
  ]
  return reward.fit_bias(state.params, jnp.concatenate(scores).mean())


# --- PPO ---


class Policy(NamedTuple):
  """The compiled parts of an iteration, shared by PPO, PPO-ptx and the evaluation."""

  sample: Callable[[Params, Prompts, Array], Any]
  score: Callable[..., tuple[Array, dict[str, Array]]]


def parts(world: World, sampling: Sampling) -> Policy:
  """`sample` draws responses from a trained part; `score` gives (stem, score under each reward model)."""
  settings = PPO(lm=world.lm, tx=optim.adamw(0.0), sampling=sampling)

  def score(trunk, judges, rows):
    stem, _ = ppo.stems(Frozen(trunk, {}, {}), rows.tokens, rows.valid, settings)
    one = lambda judge: ppo.score(Frozen(trunk, {}, judge), rows, settings, stem)
    return stem, {name: one(judge) for name, judge in judges.items()}

  sample = jax.jit(
    lambda trunk, params, prompts, key: ppo.rollout({"policy": params}, Frozen(trunk, {}, {}), prompts, key, settings)
  )
  return Policy(partial(sample, world.trunk), partial(jax.jit(score), world.trunk))


def improve(
  world: World, name: str, policy: Policy, judges: dict[str, Params], init: Params, text: Demonstrations | None,
  evaluate: Callable[[Params], dict[str, float]], sampling: Sampling,
) -> Params:  # fmt: skip
  """PPO from `rl_init` against the reward model, with pretraining text where there is some; the EMA of the policy."""
  c = world.config
  count = c.iterations * c.minibatches
  tx = optim.by_subtree(
    policy=optim.adamw(optim.warmup_constant(c.ppo_lr, c.minibatches), eps=1e-5, clip=1.0),
    value=optim.adamw(optim.cosine(c.value_lr, count), eps=1e-5, clip=1.0),
  )
  settings = PPO(
    lm=world.lm, tx=tx, sampling=sampling,
    cfg=PPOConfig(
      minibatches=c.minibatches, ptx_coef=c.ptx_coef if text else 0.0, ptx_micro=c.ptx_micro, ema_decay=c.ema_decay
    ),
    missing_eos=partial(returns.penalise_missing_eos, penalty=c.eos_penalty),
  )  # fmt: skip
  params = ppo.init_params(init, judges["reward"])
  state = steps.init_state(jax.random.key(c.seed), params, tx, ema={"policy": params["policy"]}, kl_coef=c.kl_coef)
  frozen = Frozen(world.trunk, init, judges["reward"])
  learn = steps.compiled(
    lambda state, frozen, rows, scores, text, stem: ppo.learn(
      state, frozen, rows, scores, text, ppo=settings, policy_stem=stem, reward_stem=stem
    ),
    state,
  )

  def step(state: TrainState, batch):
    prompts, texts = batch
    rows = policy.sample(state.params["policy"], prompts, ppo.rollout_key(state))
    stem, scores = policy.score(judges, rows)
    state, metrics = learn(state, frozen, rows, scores["reward"], texts, stem)
    return state, metrics | {"eval/gold": scores["gold"].mean()}

  rows = pipeline.prompts(world.tasks.prompts, world.tokenizer, prompt=c.prompt, name="prompts")
  prompts = pipeline.stream(rows, partial(pipeline.pad_prompts, length=c.prompt), size=c.episodes, seed=c.seed)
  texts = draw(text, c.episodes * c.ptx_ratio, c.seed) if text else lambda i: None
  state = fit(
    step, state, lambda i: (prompts(i), texts(i)), steps=c.iterations, stage=name, writer=world.writer,
    checkpoints=checkpoints(world, name), evaluate=lambda state: evaluate(state.params["policy"]),
    evaluate_every=max(c.iterations // 5, 1),
  )  # fmt: skip
  return (state.ema or state.params)["policy"]


# --- the run ---


def main(config: Quickstart, workdir: str | Path, sinks: tuple[str, ...] = ()) -> Path:
  """Runs everything, prints the table, and writes results.json, samples.jsonl and report.html; returns the report.

  Run again with the same directory and settings, it goes on where it stopped.  Raises UserError where the model cannot
  be fetched or the directory holds a run with other settings.
  """
  workdir = Path(workdir)
  with writers.open_run(workdir, dataclasses.asdict(config), seed=config.seed, sinks=sinks) as writer:
    start = time.perf_counter()
    world = open_world(config, workdir, writer)
    c, length = config, config.prompt + config.response
    writers.note(workdir, fingerprints={"demonstrations": fingerprint(world.tasks.demonstrations)})
    with stage(world, "set-up"):
      rows = pipeline.demonstrations(world.tasks.demonstrations, world.tokenizer, prompt=c.prompt, response=c.response)
      demos = with_stem(world, pipeline.pad_demonstrations(rows, length=length))
      windows = pipeline.text(world.tasks.text_train, world.tokenizer, length=c.text)[: c.text_rows]
      text = with_stem(world, pipeline.pad_demonstrations(windows, length=c.text))
      nll = evaluation.text_nll(world, c.text_valid)
    with stage(world, "sft"):
      sft_params = tune(world, "sft", demos)
    with stage(world, "rl_init"):
      init = tune(world, "rl_init", demos, widen(text, length))
    with stage(world, "reward"):
      judge = rank(world, "reward", sft_params, world.tasks.comparisons, demos, c.seed)
    with stage(world, "gold"):
      gold = rank(world, "gold", sft_params, world.tasks.gold, demos, c.seed + 1)
    judges = {"reward": judge, "gold": gold}
    sampling = Sampling(
      response=c.response, temperature=c.temperature, eos=world.tokenizer.eos, banned=world.tokenizer.banned
    )
    policy = parts(world, sampling)
    trained = {"base": world.base, "sft": sft_params}
    for name, mix in (("ppo", None), ("ptx", text)):
      with stage(world, name):
        watch = lambda params: {"eval/pretrain_nll": nll(params)[0]}
        trained[name] = improve(world, name, policy, judges, init, mix, watch, sampling)
    with stage(world, "evaluation"):
      results = evaluation.evaluate(world, policy, judges, trained, init, nll)
    seconds = json.loads((workdir / "seconds.json").read_text())
    results |= {
      "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
      "wall_s": round(time.perf_counter() - start, 1),
      "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
      "seed": c.seed,
    }
    (workdir / "results.json").write_text(json.dumps(results, indent=2) + "\n")
  page = report.write(workdir)
  evaluation.show(results, page)
  return page
