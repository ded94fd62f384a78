"""Drawing from a model: responses to prompts, and the stage that keeps the best of n under any
reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import bestofn, rewards, rollout, sharding
from instructjax.data.batches import buckets, pipeline
from instructjax.data.records.records import Prompt
from instructjax.data.tokens import chat
from instructjax.errors import UserError
from instructjax.rollout import Sampling
from instructjax.runs import origin, writers
from instructjax.runs.loop import progressing
from instructjax.runs.origin import Origin
from instructjax.settings.fields import to_dict
from instructjax.stages import common
from instructjax.types import Array, Key, Prompts, Rollout

# Batches whose prompts are sorted by length together; a stopped run goes on after the last such
# group
SORTED = 8
Config = Any  # ml_collections.ConfigDict: its fields are those of the file in configs/


def best_of_n(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """The best of `n` responses by the rewards: samples.jsonl, and the score against the KL bound in
  metrics.jsonl.
  """
  c = config
  with common.devices(c.mesh) as parts:
    common.divides(c.batch * c.n, parts, "config.batch x n", "devices")
    asked = common.read(c, "prompts", "prompt")[: c.prompts or None]
    model, template = common.templated(c, origin.open_model(c.model.source, c.model, c.seed))
    if not c.rewards.strip():
      raise UserError(
        "config.rewards is empty; give the directory of a reward run, or any other reward: "
        "docs/rewards.md"
      )
    judges, golden = _open(c, "rewards", model), _open(c, "gold", model)
    groups = drawn(
      c,
      model,
      template,
      asked,
      {"rewards": judges, "gold": golden},
      temperature=c.sampling.temperature,
      key=jax.random.key(c.seed),
      name=c.stage,
    )
    with common.run(c, workdir, sinks, common.prints(prompts=asked)) as writer:
      writers.note(workdir, rewards=rewards.manifest(judges), gold=rewards.manifest(golden))
      writers.keep(workdir / "samples.jsonl", [])  # a run that was stopped begins anew
      writer.rewind("bestofn", 0)
      proxies, golds = [], []
      for at, (prompt, (rows, scores)) in enumerate(zip(asked, groups, strict=True)):
        texts, score = (
          rewards.responses(model.tokenizer, rows),
          rewards.total(judges, scores["rewards"]),
        )
        key = jax.random.fold_in(jax.random.key(c.seed), at)
        best = int(bestofn.choose(key, jnp.asarray(score[None]))[0])
        one = {"first": float(score[0]), "best": float(score[best])}
        writer.samples(
          [{"prompt": prompt.prompt, "first": texts[0], "best": texts[best], "scores": one}]
        )
        proxies.append(score)
        golds.append(rewards.total(golden, scores["gold"]) if golden else score)
      for point in bestofn.curve(
        jnp.asarray(np.stack(proxies)), jnp.asarray(np.stack(golds)), doublings(c.n)
      ):
        values = {"kl": point["kl"], "score": point["proxy"]} | (
          {"gold": point["gold"]} if golden else {}
        )
        writer.metrics(int(point["n"]), "bestofn", values)
        show(
          "  ".join(
            [f"n {int(point['n'])}", *(f"{name} {value:.3f}" for name, value in values.items())]
          )
        )


def _open(c: Config, field: str, model: Origin) -> tuple[rewards.Reward, ...]:
  return rewards.open_all(getattr(c, field), c.model, model, c.data.prompt + c.sampling.response)


def drawn(
  c: Config,
  model: Origin,
  template: chat.Template | None,
  asked: Sequence[Prompt],
  judges: Mapping[str, Sequence[rewards.Reward]],
  *,
  temperature: float,
  key: Key[Array, ""],
  start: int = 0,
  name: str,
) -> Iterator[tuple[Rollout, dict[str, rewards.Scores]]]:
  """For each prompt from number `start` on, its n responses and the scores by each group of rewards
  that is not empty.

  `start` is a multiple of SORTED batches, batch i draws with fold_in(key, i), and `name` stands
  before the progress. Everything is checked at the call, before the first draw.
  """
  if c.n < 1 or c.batch < 1:
    raise UserError(f"config.n={c.n}, config.batch={c.batch}: both must be at least 1")
  origin.fits(model.lm, c.data.prompt + c.sampling.response, "prompt + response")
  rows = pipeline.prompts(
    asked, model.tokenizer, prompt=c.data.prompt, name=c.data.prompts, template=template
  )
  rest = {name: value for name, value in to_dict(c.sampling).items() if name != "temperature"}
  each = (
    c.n if c.batch % (c.mesh.data * c.mesh.fsdp) == 0 else 1
  )  # responses of a row: prompts must divide over the devices
  ends = {"eos": model.tokenizer.eos, "banned": model.tokenizer.banned}
  sampling = Sampling(temperature=temperature, n=each, **ends, **rest)
  draw = jax.jit(partial(rollout.sample, model.lm, cfg=sampling))

  lengths, group = buckets.lengths(c.data.prompt, c.data.buckets), SORTED * c.batch

  def batches() -> Iterator[tuple[int, Prompts, list[int]]]:
    for begin in range(start, len(rows), group):
      part = buckets.once(
        rows[begin : begin + group], pipeline.pad_prompts, size=c.batch, lengths=lengths
      )
      for i, (prompts, numbers) in enumerate(part, begin // c.batch):
        yield i, prompts, [begin + at for at in numbers]

  def groups() -> Iterator[tuple[list[int], list[tuple[Rollout, dict[str, rewards.Scores]]]]]:
    done = start
    with progressing(name, start, len(rows)) as progress:
      for i, prompts, numbers in batches():
        prompts = sharding.place_batch(
          jax.tree.map(lambda x: np.repeat(x, c.n // each, axis=0), prompts)
        )
        found = draw(model.params, prompts, jax.random.fold_in(key, i))
        host = sharding.fetch(found)
        said = [asked[at].prompt for at in numbers for _ in range(c.n)]
        scores = {
          group: rewards.score_rollout(several, found, host, said, model.tokenizer)
          for group, several in judges.items()
          if several
        }
        done += len(numbers)
        progress.show(done, {})
        cut = lambda at, found=(host, scores): jax.tree.map(lambda x: x[at : at + c.n], found)
        yield [at - start for at in numbers], [cut(at) for at in range(0, len(numbers) * c.n, c.n)]

  return buckets.in_order(groups())


def show(text: str) -> None:
  """Prints, in one process of several."""
  if jax.process_index() == 0:
    print(text, flush=True)


def doublings(n: int) -> list[int]:
  """1, 2, 4, ... and n."""
  return sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i <= n)})
