"""Stages that only sample: responses to prompts, and best-of-n under a reward model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import bestofn, origin, reinforce, reward, rollout, sharding, stages
from instructjax.data import pipeline
from instructjax.data.records import Prompt
from instructjax.errors import UserError
from instructjax.loop import open_progress
from instructjax.origin import Origin
from instructjax.rollout import Sampling
from instructjax.types import Rollout

Config = Any  # ml_collections.ConfigDict: its fields are those of the file in configs/


def sample(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """Prints `n` responses to each prompt and leaves samples.jsonl."""
  c = config
  with stages.devices(c.mesh) as parts:
    stages.divides(c.batch * c.n, parts, "config.batch x n", "devices")
    asked = [Prompt(c.prompt)] if c.prompt else stages.read(c, "prompts", "prompt")[: c.prompts or None]
    model = origin.open_model(c.model.source, c.model, c.seed)
    groups = drawn(c, model, asked)
    with stages.run(c, workdir, sinks, stages.prints(prompts=asked)) as writer:
      for prompt, (rows, _) in zip(asked, groups, strict=True):
        texts = responses(model, rows)
        writer.samples([{"prompt": prompt.prompt, "responses": texts}])
        show("\n".join([f"> {prompt.prompt}", *(text.strip() for text in texts), ""]))


def best_of_n(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """The best of `n` responses by a reward model: samples.jsonl, and the score against the KL bound in metrics.jsonl."""
  c = config
  with stages.devices(c.mesh) as parts:
    stages.divides(c.batch * c.n, parts, "config.batch x n", "devices")
    asked = stages.read(c, "prompts", "prompt")[: c.prompts or None]
    model = origin.open_model(c.model.source, c.model, c.seed)
    names = {"proxy": c.reward_model} | ({"gold": c.gold_model} if c.gold_model else {})
    judges = {name: origin.open_reward_model(source, c.model) for name, source in names.items()}
    for judge in judges.values():
      reinforce.same_ids(model, judge)
      stages.fits(judge.lm, c.data.prompt + c.sampling.response, "prompt + response")
    groups = drawn(c, model, asked, judges)
    with stages.run(c, workdir, sinks, stages.prints(prompts=asked)) as writer:
      scores: dict[str, list] = {name: [] for name in judges}
      for at, (prompt, (rows, score)) in enumerate(zip(asked, groups, strict=True)):
        texts = responses(model, rows)
        key = jax.random.fold_in(jax.random.key(c.seed), at)
        best = int(bestofn.choose(key, jnp.asarray(score["proxy"][None]))[0])
        one = {"first": float(score["proxy"][0]), "best": float(score["proxy"][best])}
        writer.samples([{"prompt": prompt.prompt, "first": texts[0], "best": texts[best], "scores": one}])
        for name in judges:
          scores[name].append(score[name])
      proxy = jnp.asarray(np.stack(scores["proxy"]))
      gold = jnp.asarray(np.stack(scores["gold"])) if "gold" in scores else proxy
      for point in bestofn.curve(proxy, gold, doublings(c.n)):
        values = {"kl": point["kl"], "score": point["proxy"]} | ({"gold": point["gold"]} if c.gold_model else {})
        writer.metrics(int(point["n"]), "bestofn", values)
        show("  ".join([f"n {int(point['n'])}", *(f"{name} {value:.3f}" for name, value in values.items())]))


def drawn(
  c: Config, model: Origin, asked: list[Prompt], judges: dict[str, Origin] | None = None
) -> Iterator[tuple[Rollout, dict[str, np.ndarray]]]:
  """For each prompt its n responses and their scores.  Everything is checked at the call, before the first draw."""
  if c.n < 1 or c.batch < 1:
    raise UserError(f"config.n={c.n}, config.batch={c.batch}: both must be at least 1")
  stages.fits(model.lm, c.data.prompt + c.sampling.response, "prompt + response")
  template = stages.chat_template(c, model)
  for judge in (judges or {}).values():
    reinforce.same_template(origin.with_template(model.about, template), judge)
  rows = pipeline.prompts(asked, model.tokenizer, prompt=c.data.prompt, name=c.data.prompts, template=template)
  sampling = Sampling(eos=model.tokenizer.eos, banned=model.tokenizer.banned, **c.sampling.to_dict())
  draw = jax.jit(partial(rollout.sample, model.lm, cfg=sampling))
  score = {name: jax.jit(partial(reward.score, judge.lm)) for name, judge in (judges or {}).items()}
  params = {name: {"lm": judge.params, "head": judge.head} for name, judge in (judges or {}).items()}

  def groups() -> Iterator[tuple[Rollout, dict[str, np.ndarray]]]:
    pad, done = partial(pipeline.pad_prompts, length=c.data.prompt), 0
    progress = open_progress(c.stage, 0, len(rows))
    for i, (prompts, real) in enumerate(pipeline.once(rows, pad, size=c.batch)):
      prompts = sharding.place_batch(jax.tree.map(lambda x: np.repeat(x, c.n, axis=0), prompts))
      found = draw(model.params, prompts, jax.random.fold_in(jax.random.key(c.seed), i))
      scores = {name: sharding.fetch(one(params[name], found.tokens, found.valid)) for name, one in score.items()}
      host = sharding.fetch(found)
      done += real
      progress.show(done, {})
      for at in range(0, real * c.n, c.n):
        mine = slice(at, at + c.n)
        yield jax.tree.map(lambda x, mine=mine: x[mine], host), {name: s[mine] for name, s in scores.items()}
    progress.close()

  return groups()


def show(text: str) -> None:
  """Prints, in one process of several."""
  if jax.process_index() == 0:
    print(text, flush=True)


def responses(model: Origin, rows: Rollout) -> list[str]:
  """The text of each response."""
  width = rows.mask.shape[1]
  return [model.tokenizer.decode(ids[-width:][mask].tolist()) for ids, mask in zip(rows.tokens, rows.mask, strict=True)]


def doublings(n: int) -> list[int]:
  """1, 2, 4, ... and n."""
  return sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i <= n)})
