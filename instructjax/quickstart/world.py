"""What every stage of the quickstart reads: settings, the model in its parts, the data, and
compiled functions.

Every model is the same trunk (embeddings and lower blocks, frozen, bfloat16) under its own top
blocks.  The trunk is run once over each text and its activations, the stem, are kept; training
and scoring begin at the stem.  `top=None` trains all blocks instead.

Dimensions: N rows, B batch, K completions, P prompt, R response, T = P + R, D width.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import likelihood, models, optim, ppo
from instructjax.data.batches import pipeline
from instructjax.data.public import tone
from instructjax.data.tokens import tokenizers
from instructjax.errors import UserError
from instructjax.models import freeze
from instructjax.ppo import PPO
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.settings.quickstart import QuickstartSettings
from instructjax.system import download, memory
from instructjax.types import LM, Array, Frozen, Params, Prompts, PyTree

Quickstart = QuickstartSettings


class World(NamedTuple):
  """What every stage reads: the model in its parts, the tokenizer, the data, and the trunk as a
  compiled function.
  """

  config: Quickstart
  workdir: Path
  writer: writers.Writer
  lm: LM
  trunk: Params
  base: Params  # the trained part before any training
  tokenizer: tokenizers.Tokenizer
  tasks: tone.Tasks
  stem: Callable[[Array, Array], Array]
  about: dict[str, Any]  # how `origin` builds the model again


# --- set-up ---


def one_line(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """The same tokenizer where a new line ends a response and no other token with a line break is
  ever sampled.
  """
  newline = tokenizer.encode("\n")
  if len(newline) != 1:
    raise UserError(
      "the quickstart ends responses with a new line, which this tokenizer spells in several tokens"
    )
  breaks = {i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i])} - {newline[0]}
  eos = (newline[0], *(i for i in tokenizer.eos if i != newline[0]))
  return tokenizer._replace(
    eos=eos, banned=tuple(sorted((set(tokenizer.banned) | breaks) - set(eos)))
  )


def open_world(config: Quickstart, workdir: Path, writer: writers.Writer) -> World:
  """Fetches and loads the model, splits it, and draws the data.  Raises UserError where any of it
  is not to be had.
  """
  source = config.model or download.fetch()
  loaded = models.load(source, dtype=config.dtype, unroll=config.unroll)
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
  compiled = jax.jit(
    lambda trunk, tokens, valid: loaded.lm.stem(trunk, tokens, valid).astype(jnp.bfloat16)
  )
  stem = partial(compiled, trunk)
  about = origin.describe(loaded.config, origin.reference(loaded.tokenizer, str(source)))
  about |= {"eos": tokenizer.eos, "banned": tokenizer.banned}  # a line is the whole response
  return World(config, workdir, writer, loaded.lm, trunk, base, tokenizer, tasks, stem, about)


def leave(world: World, policies: Mapping[str, Params], rewards: Mapping[str, Params]) -> None:
  """Whole models as finished runs under `models/`: `instructjax sample`, `eval` and `export` open
  them by that directory.
  """
  for name, trained in policies.items():
    _finish(world, name, freeze.whole(world.trunk, trained), "policy")
  for name, judge in rewards.items():
    _finish(
      world, name, {"lm": freeze.whole(world.trunk, judge["lm"]), "head": judge["head"]}, "reward"
    )


def _finish(world: World, name: str, params: Params, kind: str) -> None:
  folder = world.workdir / "models" / name
  if Checkpoints(folder / "checkpoints" / "final").latest() is None:
    origin.finish(folder, 0, params, world.about, kind)


def with_stem(world: World, batch: PyTree, rows: int = 64) -> PyTree:
  """The batch with the stem of each of its rows, computed `rows` at a time; None where no block is
  frozen.
  """
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
  memory.release()
  path = world.workdir / "seconds.json"
  seconds = json.loads(path.read_text()) if path.is_file() else {}
  seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
  path.write_text(json.dumps(seconds))


def checkpoints(world: World, name: str) -> Checkpoints:
  return Checkpoints(world.workdir / "checkpoints" / name, keep=1)


class Policy(NamedTuple):
  """The compiled parts of an iteration, shared by PPO, PPO-ptx and the evaluation."""

  sample: Callable[[Params, Prompts, Array], Any]
  score: Callable[..., tuple[Array, dict[str, Array]]]
  logp: Callable[..., Array]


def parts(world: World, sampling: Sampling) -> Policy:
  """`sample` draws responses from a trained part; `score` gives (stem, score under each reward
  model); `logp` of a response.
  """
  settings = PPO(lm=world.lm, tx=optim.adamw(0.0), sampling=sampling)

  def score(trunk, judges, rows):
    stem, _ = ppo.stems(Frozen(trunk, {}, {}), rows.tokens, rows.valid, settings)
    one = lambda judge: ppo.score(Frozen(trunk, {}, judge), rows, settings, stem)
    return stem, {name: one(judge) for name, judge in judges.items()}

  sample = jax.jit(
    lambda trunk, params, prompts, key: ppo.rollout(
      {"policy": params}, Frozen(trunk, {}, {}), prompts, key, settings
    )
  )

  def logp(trunk, params, rows, stem):
    return likelihood.response_logp(
      world.lm,
      trunk | params,
      rows.tokens,
      rows.valid,
      sampling.response,
      temperature=sampling.temperature,
      banned=sampling.banned,
      stem=stem,
    )[0]

  return Policy(*(partial(f, world.trunk) for f in (sample, jax.jit(score), jax.jit(logp))))
