"""One stage from a configuration: reads and checks everything first, then trains with `loop.fit`.

Each stage is a function (config, workdir, sinks); `configs/` documents the fields.  A finished
run's directory is the `model`, `rl_init` or `reward_model` of the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from instructjax import losses, optim, reward, sft, sharding, steps
from instructjax.data.batches import corpora, pipeline, prefetch
from instructjax.data.batches.mixture import Rows
from instructjax.data.records import records
from instructjax.data.tokens import chat
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError
from instructjax.models import lora
from instructjax.runs import origin, writers
from instructjax.runs.checkpoint import Checkpoints
from instructjax.runs.loop import fit
from instructjax.settings.fields import to_dict
from instructjax.settings.subjects import OptimizerSettings
from instructjax.stages import trainable
from instructjax.types import LM, Demonstrations, Params, TrainState

Config = Any  # ml_collections.ConfigDict: its fields are those of the file in configs/


# --- what every stage shares ---


@contextlib.contextmanager
def devices(mesh: Config) -> Iterator[int]:
  """Sets the mesh and gives the number of parts of a batch; one device works without a mesh.

  Raises UserError where several processes do not use all of their devices: some would wait for
  others that have no part.
  """
  wanted, found = mesh.data * mesh.fsdp * mesh.model, jax.device_count()
  if jax.process_count() > 1 and wanted != found:
    raise UserError(
      f"config.mesh takes {wanted} of the {found} devices of {jax.process_count()} processes: set "
      "config.mesh.data, .fsdp and "
      f".model so that their product is {found}"
    )
  if wanted == 1:
    yield 1
    return
  with jax.set_mesh(sharding.make_mesh(mesh.data, mesh.fsdp, mesh.model)):
    yield mesh.data * mesh.fsdp


def divides(rows: int, parts: int, name: str, by: str) -> None:
  """Raises UserError where `rows` do not divide into `parts`."""
  if parts < 1 or rows < 1 or rows % parts:
    raise UserError(f"{name}={rows} does not divide by {by}={parts}; choose a multiple of it")


def read(config: Config, name: str, kind: str) -> list:
  """The records of getattr(config.data, name), one source.  Raises UserError where the field is empty, and
  for every bad record.
  """
  found = corpora.read(config, name, kind)
  if len(found) > 1:
    raise UserError(
      f"config.data.{name}={getattr(config.data, name)}: every record is used here, so weights say nothing; "
      "give files with commas between"
    )
  return found[0].records


def templated(config: Config, model: origin.Origin) -> tuple[origin.Origin, chat.Template | None]:
  """The model as it will say that it was trained or sampled, and the template of
  config.data.template.

  Says so where the model was trained with another one.
  """
  template = origin.chat_template(config.data.template, model.about, model.tokenizer)
  before, now = (
    origin.template_of(model.about),
    chat.about(template)["fingerprint"] if template else "",
  )
  if before and before != now and jax.process_index() == 0:
    name = "plain text" if template is None else template.name
    print(
      f"note: the model was trained on a chat template ({before[:8]}), this run reads {name}; "
      "config.data.template=chat goes on with the model's",
      file=sys.stderr,
      flush=True,
    )
  return model._replace(
    about=model.about | {"template": chat.about(template) if template else None}
  ), template


def demonstration_rows(
  config: Config, name: str, found: Sequence, tokenizer: Tokenizer, template: chat.Template | None
) -> list[pipeline.Row]:
  data = config.data
  return pipeline.demonstrations(
    found,
    tokenizer,
    prompt=data.prompt,
    response=data.response,
    separator=data.separator,
    name=name,
    template=template,
  )


def schedule(settings: OptimizerSettings, updates: int, held: int = 1) -> optim.Schedule:
  """The learning rate that settings describe, over so many updates.

  `held` is the number of updates during which the rate stays the same: PPO counts iterations.
  """
  last = settings.decay or max(updates // held, 1)
  falling = max(last - settings.warmup, 1)
  match settings.schedule:
    case "cosine":
      final = 0.1 if settings.final is None else settings.final
      rate = optim.cosine(settings.lr, falling, final=final)
    case "linear":
      rate = optim.linear(settings.lr, falling, final=settings.final or 0.0)
    case "constant":
      rate = optim.warmup_constant(settings.lr, 0, start=1.0)
  if settings.warmup:
    start = 0.1 if settings.start is None else settings.start
    rate = optim.warmed_up(rate, settings.lr, settings.warmup, start=start)
  return optim.held(rate, held) if held > 1 else rate


def optimizer(settings: Config, updates: int, held: int = 1) -> optax.GradientTransformation:
  s = settings
  return optim.adamw(
    schedule(s, updates, held),
    b1=s.b1,
    b2=s.b2,
    eps=s.eps,
    eps_mode=s.eps_mode,
    weight_decay=s.weight_decay,
    clip=s.clip,
  )


def prints(**data: Sequence | str) -> dict[str, str]:
  """The fingerprints of records, or those that are given."""
  return {
    name: rows if isinstance(rows, str) else records.fingerprint(rows)
    for name, rows in data.items()
  }


def train(
  config: Config,
  workdir: Path,
  writer: writers.Writer,
  step: Callable,
  state: TrainState,
  batches: Callable[[int], Any],
  count: int,
  about: Mapping[str, Any],
  fingerprints: Mapping[str, str],
  evaluate: Callable[[TrainState], dict[str, Any]] | None = None,
) -> TrainState:
  """`loop.fit` with the settings of a configuration, whose fingerprint each checkpoint holds beside
  those of the data.

  Batches are made ahead; how long the steps waited for them stands in manifest.json.
  """
  prints = {"configuration": writers.fingerprint(to_dict(config))} | dict(fingerprints)
  begun = time.perf_counter()
  with prefetch.ahead(corpora.placed(batches), stop=count) as feed:
    state = fit(
      step,
      state,
      feed.batch,
      steps=count,
      stage=config.stage,
      writer=writer,
      checkpoints=Checkpoints(
        workdir / "checkpoints" / config.stage, keep=config.keep, best=config.best
      ),
      checkpoint_every=config.checkpoint_every,
      log_every=config.log_every,
      evaluate=evaluate,
      evaluate_every=config.evaluate_every,
      extra={"model": about, "fingerprints": prints},
    )
  seconds = {"data": round(feed.waited(), 3), "training": round(time.perf_counter() - begun, 3)}
  writers.note(workdir, seconds={config.stage: seconds})
  return state


def run(config: Config, workdir: Path, sinks: tuple[str, ...], fingerprints: Mapping[str, str]):
  """The run directory; other data under the same names is another run."""
  return writers.open_run(
    workdir, to_dict(config) | {"fingerprints": fingerprints}, seed=config.seed, sinks=sinks
  )


# --- pretrain, sft, rl_init ---


class Selection(NamedTuple):
  """How a stage chooses its checkpoint.

  measure   (model, template, what is not trained, parts of a batch) -> what is measured of a state, beside the loss
  choose    (last state) -> the state to leave
  prints    fingerprints of what it measures with
  """

  measure: Callable[
    [origin.Origin, chat.Template | None, Params, int], Callable[[TrainState], Mapping[str, Any]]
  ]
  choose: Callable[[TrainState], TrainState]
  prints: Mapping[str, str]


def supervised(
  config: Config, workdir: Path, sinks: tuple[str, ...] = (), selection: Selection | None = None
) -> None:
  """Pretraining, SFT, or the model that PPO starts from, by the data that the configuration names.
  It leaves the last state, or the one that `selection` chooses.
  """
  c = config
  with devices(c.mesh) as parts:
    divides(c.batch, c.micro * parts, "config.batch", "micro-batches x devices")
    demos = corpora.read(c, "demonstrations", "demonstration") if c.stage != "pretrain" else []
    texts = corpora.read(c, "text", "text", lazily=c.data.lazy) if c.stage != "sft" else []
    held_out = read(c, "valid", "demonstration" if demos else "text") if c.data.valid else []
    base = origin.open_model(c.model.source, c.model, c.seed)
    length = c.data.prompt + c.data.response if demos else c.data.length
    origin.fits(base.lm, length, "a row (prompt + response)" if demos else "config.data.length")
    base, template = templated(c, base) if demos else (base, None)
    found = {
      part.source: _demo_rows(c, part.records, base.tokenizer, template, part.source)
      for part in demos
    }
    apart = c.data.pack or any(window is None for _, window in found.values())
    window = c.data.response if demos and not apart else None
    rows = corpora.rows(
      demos, lambda part: corpora.packed(c, part, found[part.source][0], length, "demonstrations")
    )
    windows, text_print = corpora.texts(c, texts, base.tokenizer, length)
    valid, _ = (
      _demo_rows(c, held_out, base.tokenizer, template, c.data.valid)
      if demos
      else (_windows(c, held_out, base.tokenizer), None)
    )
    mix = max(round(c.text_share * c.batch), 1) if demos and windows else c.batch if windows else 0
    if demos and mix >= c.batch:
      raise UserError(
        f"config.batch={c.batch} with config.text_share={c.text_share} holds no demonstration; "
        "raise it"
      )
    batches = _mixed(c, rows, windows, length, mix)
    count = c.steps or c.epochs * len(rows or windows) // (c.batch - mix or mix)
    if not count:
      raise UserError(
        f"{len(rows or windows)} rows make no batch of {c.batch}: give more data or lower "
        "config.batch"
      )
    tx = optimizer(c.optimizer, count)
    trunk, _, trained, about = trainable.part(
      base, c.model.source, c, jax.random.fold_in(jax.random.key(c.seed), 2)
    )
    state = steps.init_state(jax.random.key(c.seed), trained, tx)
    settings = sft.SFTConfig(
      micro=c.micro, window=None if mix else window, dropout=c.model.dropout > 0
    )
    step = steps.compiled(partial(sft.sft_step, lm=base.lm, tx=tx, cfg=settings), state)
    one = lambda state, batch: step(state, trunk, batch)
    base = base._replace(params={})  # donated with the state
    measures = [nll(base.lm, trunk, valid, length, parts * c.micro)] if valid else []
    measures += [selection.measure(base, template, trunk, parts)] if selection else []
    evaluate = (
      (lambda state: dict(item for one in measures for item in one(state).items()))
      if measures
      else None
    )
    identity = prints(demonstrations=corpora.records(demos), text=text_print, valid=held_out)
    identity |= selection.prints if selection else {}
    with run(c, workdir, sinks, identity) as writer:
      state = train(c, workdir, writer, one, state, batches, count, about, identity, evaluate)
      state = selection.choose(state) if selection else state
      leave(workdir, int(state.iteration), whole(c, c.model.source, state.params), about)


def _demo_rows(
  c: Config, found: Sequence, tokenizer: Tokenizer, template: chat.Template | None, name: str
) -> tuple[list[pipeline.Row], int | None]:
  """Rows and the longest marked part; with `loss_on_prompt` the prompt is marked too, and then it
  is the whole row.
  """
  if not found:
    return [], None
  rows = demonstration_rows(c, name, found, tokenizer, template)
  if c.loss_on_prompt:
    return [row._replace(start=1, mask=None) for row in rows], None
  apart = any(row.mask is not None and row.mask[: row.start].any() for row in rows)
  return rows, None if apart else c.data.response


def _windows(c: Config, found: Sequence, tokenizer: Tokenizer) -> list[pipeline.Row]:
  if not found or c.data.pack:
    return pipeline.documents(found, tokenizer, length=c.data.length) if found else []
  return pipeline.text(found, tokenizer, length=c.data.length, tail=True, name=c.data.valid)


def _mixed(
  c: Config, rows: Rows, windows: Rows, length: int, texts: int
) -> Callable[[int], Demonstrations]:
  """Batches of demonstrations and, after them, `texts` rows of text; of both the rows of this
  process.
  """
  mine, demos = sharding.local_rows(c.batch), c.batch - texts
  streams = [
    corpora.stream(c, source, length, size, here)
    for source, size, here in (
      (rows, demos, [at for at in mine if at < demos]),
      (windows, texts, [at - demos for at in mine if at >= demos]),
    )
    if here
  ]
  return lambda i: jax.tree.map(lambda *x: np.concatenate(x), *(stream(i) for stream in streams))


def nll(
  lm: LM, trunk: Params, rows: Sequence, length: int, multiple: int, size: int = 16
) -> Callable[[TrainState], dict[str, Any]]:
  """Mean negative log-probability of held-out rows in nats a token."""
  size = -(-size // multiple) * multiple
  one = jax.jit(lambda trunk, params, batch: sft.evaluate(trunk | params, batch, lm=lm))

  def evaluate(state: TrainState) -> dict[str, Any]:
    total, count = 0.0, 0.0
    for batch, real in pipeline.once(
      rows, partial(pipeline.pad_demonstrations, length=length), size=size
    ):
      batch = dataclasses.replace(batch, mask=batch.mask & (np.arange(size) < real)[:, None])
      value, tokens = one(trunk, state.params, sharding.place_batch(batch))
      total, count = total + float(value), count + float(tokens)
    return {"eval/nll": total / max(count, 1.0)}

  return evaluate


def whole(c: Config, source: str, trained: Params) -> Params:
  """The whole model in float32, or its adapter; blocks that were not trained come from the source
  again.
  """
  if c.top is None:
    return trained
  return trainable.joined(lora.merge(origin.open_model(source, c.model, c.seed).params), trained)


def leave(workdir: Path, step: int, params: Params, about: Mapping[str, Any]) -> None:
  """Leaves a policy for the next stage; an adapter also in the layout of PEFT, in `adapter/`."""
  if "adapter" in about:
    trainable.save_adapter(workdir / "adapter", params["adapter"], about)
  origin.finish(workdir, step, params, about, "policy")


# --- reward ---


def reward_model(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """The reward model on ranked completions; its bias is fitted so that demonstrations score 0 on
  average.
  """
  c = config
  with devices(c.mesh) as parts:
    divides(c.batch, c.micro * parts, "config.batch", "micro-batches x devices")
    ranked = corpora.read(c, "comparisons", "comparison")
    held_out = read(c, "valid", "comparison") if c.data.valid else []
    demos = read(c, "demonstrations", "demonstration") if c.data.demonstrations else []
    base = origin.open_model(c.model.source, c.model, c.seed)
    length = c.data.prompt + c.data.response
    origin.fits(base.lm, length, "a row (prompt + response)")
    base, template = templated(c, base)
    groups = corpora.rows(
      ranked, lambda part: _groups(c, part.records, base.tokenizer, part.source, template)
    )
    valid = _groups(c, held_out, base.tokenizer, c.data.valid, template)
    shown = (
      demonstration_rows(c, c.data.demonstrations, demos, base.tokenizer, template) if demos else []
    )
    k = max(len(one.completions) for one in [*corpora.records(ranked), *held_out])
    pad = partial(pipeline.pad_comparisons, k=k, length=length)
    count = c.steps or c.epochs * len(groups) // c.batch
    if not count:
      raise UserError(
        f"{len(groups)} comparisons make no batch of {c.batch}: give more data or lower "
        "config.batch"
      )
    key = jax.random.key(c.seed)
    trunk, _, trained, about = trainable.part(base, c.model.source, c, jax.random.fold_in(key, 2))
    tx = optimizer(c.optimizer, count)
    params = reward.init(jax.random.fold_in(key, 1), base.lm, trained)
    state = steps.init_state(key, params | {"head": sharding.replicate(params["head"])}, tx)
    settings = reward.RewardConfig(micro=c.micro, dropout=c.model.dropout > 0, pairs=c.pairs)
    step = steps.compiled(partial(reward.reward_step, lm=base.lm, tx=tx, cfg=settings), state)
    one = lambda state, batch: step(state, trunk, batch)
    base = base._replace(params={})
    batches = pipeline.stream(
      groups, pad, size=c.batch, seed=c.seed, mine=sharding.local_rows(c.batch)
    )
    evaluate = accuracy(base.lm, trunk, valid, pad, parts * c.micro) if valid else None
    found = prints(comparisons=corpora.records(ranked), valid=held_out, demonstrations=demos)
    with run(c, workdir, sinks, found) as writer:
      state = train(c, workdir, writer, one, state, batches, count, about, found, evaluate)
      params = state.params
      if shown:
        params = reward.fit_bias(
          params, mean_score(base.lm, reward.join(trunk, params), shown, length, parts)
        )
      body = whole(c, c.model.source, params["lm"])
      origin.finish(
        workdir, int(state.iteration), {"lm": body, "head": params["head"]}, about, "reward"
      )


def _groups(
  c: Config, found: Sequence, tokenizer: Tokenizer, name: str, template: chat.Template | None
) -> list[pipeline.Group]:
  data = c.data
  return pipeline.comparisons(
    found,
    tokenizer,
    prompt=data.prompt,
    response=data.response,
    separator=data.separator,
    name=name,
    template=template,
  )


def accuracy(
  lm: LM, trunk: Params, groups: Sequence, pad: Callable, multiple: int, size: int = 8
) -> Callable[[TrainState], dict[str, Any]]:
  """The share of held-out pairs that are ordered as the labeler did."""
  size = -(-size // multiple) * multiple

  @jax.jit
  def one(trunk, params, batch):
    scores = reward.score_comparisons(lm, reward.join(trunk, params), batch)
    return jax.tree.map(jnp.sum, losses.ranking_accuracy(scores, batch.rank))

  def evaluate(state: TrainState) -> dict[str, Any]:
    right = total = 0.0
    for batch, real in pipeline.once(groups, pad, size=size):
      batch = dataclasses.replace(
        batch, rank=batch.rank * (np.arange(size) < real)[:, None]
      )  # 0 is no completion
      correct, pairs = one(trunk, state.params, sharding.place_batch(batch))
      right, total = right + float(correct), total + float(pairs)
    return {"eval/accuracy": right / max(total, 1.0)}

  return evaluate


def mean_score(
  lm: LM, params: Params, rows: Sequence, length: int, multiple: int, size: int = 16
) -> jax.Array:
  """The mean score of demonstrations."""
  size = -(-size // multiple) * multiple
  score = jax.jit(partial(reward.score, lm))
  pad = partial(pipeline.pad_demonstrations, length=length)
  parts = [
    sharding.fetch(score(params, batch.tokens, batch.valid))[:real]
    for batch, real in (
      (sharding.place_batch(b), n) for b, n in pipeline.once(rows, pad, size=size)
    )
  ]
  return jnp.float32(np.concatenate(parts).mean())
