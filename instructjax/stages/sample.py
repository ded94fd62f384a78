"""`instructjax sample`: what one or several models say to prompts, at one or several temperatures."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from instructjax import rewards
from instructjax.data.curation.outputs import Output, choose
from instructjax.data.records import records, sources
from instructjax.data.records.records import Prompt
from instructjax.errors import UserError
from instructjax.runs import origin, provenance, writers
from instructjax.stages import common, generate

Config = Any  # ml_collections.ConfigDict: its fields are those of configs/sample.py
Row = dict[str, Any]  # of draws.jsonl: model, temperature, prompt (its number), responses, scores


class Model(NamedTuple):
  """Where a model is from, and what it is called in the samples."""

  name: str
  source: str


class Drawing(NamedTuple):
  """An open model: what it draws, and what the manifest says of it and of its rewards."""

  rows: Iterator[Row]
  about: dict[str, Any]
  rewards: dict[str, Any]


class Plan(NamedTuple):
  """What is sampled.  A cell is one model at one temperature; cells follow each other in the order
  of draws.jsonl.
  """

  models: tuple[Model, ...]
  temperatures: tuple[float, ...]
  prompts: Sequence[Prompt]

  @property
  def cells(self) -> int:
    return len(self.models) * len(self.temperatures)

  def whole(self, rows: int, group: int) -> int:
    """The rows of draws.jsonl up to the group of batches that was not finished."""
    cell, within = divmod(rows, len(self.prompts))
    return cell * len(self.prompts) + within // group * group

  def left(self, rows: int) -> list[Model]:
    """The models that have not drawn everything where draws.jsonl has this many rows."""
    each = len(self.temperatures) * len(self.prompts)
    return [model for at, model in enumerate(self.models, 1) if rows < at * each]

  def begun(self, model: Model, rows: int) -> bool:
    """Whether a model has drawn anything where draws.jsonl has this many rows."""
    return rows > self.models.index(model) * len(self.temperatures) * len(self.prompts)

  def start(self, model: Model, temperature: float, rows: int) -> int:
    """The first prompt that a cell has not answered where draws.jsonl has this many rows."""
    cell = self.models.index(model) * len(self.temperatures) + self.temperatures.index(temperature)
    return min(max(rows - cell * len(self.prompts), 0), len(self.prompts))


def sample(config: Config, workdir: Path, sinks: tuple[str, ...] = ()) -> None:
  """Leaves in samples.jsonl, for each prompt, `n` responses of each model at each temperature, or
  `k` different ones of all.

  Models are opened one after the other.  draws.jsonl holds what they drew; from there a stopped
  run goes on.  A `config.prompt` is just answered, and may be followed by another in the same
  directory.  Raises UserError where a model that has drawn has other weights now.
  """
  c, path = config, workdir / writers.DRAWS
  with common.devices(c.mesh) as parts:
    common.divides(c.batch * c.n, parts, "config.batch x n", "devices")
    plan = planned(c)
    drawn = [] if c.prompt else writers.rows(path)
    drawn = drawn[: plan.whole(len(drawn), generate.SORTED * c.batch)]
    left = plan.left(len(drawn))
    for model in plan.models[: len(plan.models) - len(left)]:
      unchanged(c, workdir, model)
    ready = (
      [opened(c, plan, left[0], len(drawn))] if left else []
    )  # all is checked before there is a directory
    if ready and plan.begun(left[0], len(drawn)):
      provenance.compare(workdir, left[0].name, ready[0].about)
    with common.run(c, workdir, sinks, common.prints(prompts=plan.prompts)) as writer:
      if not c.prompt:
        writers.keep(path, drawn)
      for model in left:
        drawing = ready.pop() if ready else opened(c, plan, model, len(drawn))
        writers.note(workdir, models=provenance.noted(workdir) | {model.name: drawing.about})
        if drawing.rewards:
          writers.note(workdir, rewards=drawing.rewards)
        for row in drawing.rows:
          drawn.append(row)
          if not c.prompt:
            writers.append(path, [row])
          if plan.cells == 1 and not c.k:
            generate.show(
              "\n".join(
                [f"> {plan.prompts[row['prompt']].prompt}", *map(str.strip, row["responses"]), ""]
              )
            )
        del drawing  # and the model with it: the next one needs its memory
      samples = [gathered(c, plan, drawn, at) for at in range(len(plan.prompts))]
      if c.prompt:
        writer.samples(samples)
      else:
        writers.keep(workdir / "samples.jsonl", samples)
    generate.show(told(c, plan, samples, workdir / "samples.jsonl", again=not left))


# --- the plan ---


def planned(c: Config) -> Plan:
  """What a configuration asks for.  Raises UserError for whatever can be known to be wrong before a
  model is opened.
  """
  models = named(c.model.source or "", c.model.shape)
  for model in models:
    if origin.is_run(model.source):
      origin.finished(Path(model.source), "policy")
  temperatures = tuple(c.sampling.temperature)
  if not temperatures or min(temperatures) < 0 or len(set(temperatures)) < len(temperatures):
    raise UserError(
      f"config.sampling.temperature={temperatures}: give different numbers from 0, such as 0.7,1"
    )
  most = c.n * len(models) * len(temperatures)
  if c.k and not records.K[0] <= c.k <= min(records.K[1], most):
    raise UserError(
      f"config.k={c.k}: people rank {records.K[0]} to {records.K[1]} outputs of a prompt, and "
      f"{len(models)} models x "
      f"{len(temperatures)} temperatures x config.n={c.n} draw {most}; choose k among them, raise "
      "config.n, or 0 keeps all"
    )
  prompts = (
    [Prompt(c.prompt)] if c.prompt else common.read(c, "prompts", "prompt")[: c.prompts or None]
  )
  return Plan(models, temperatures, prompts)


def named(text: str, shape: str) -> tuple[Model, ...]:
  """The models of "sft=runs/sft,ppo=runs/ppo"; without a name it is the last part of the source.

  Raises UserError where two have one name.
  """
  found = []
  for piece in [text] if sources.exists(text) else [piece.strip() for piece in text.split(",")]:
    given = re.fullmatch(r"([\w.:+-]+)=(.+)", piece)
    name, source = (
      given.groups() if given and not sources.exists(piece) else (Path(piece).name or shape, piece)
    )
    found.append(Model(name, source))
  names = [model.name for model in found]
  twice = next((model for model in found if names.count(model.name) > 1), None)
  if twice:
    raise UserError(
      f"--model: two models are called {twice.name!r}; name them: --model=NAME={twice.source}"
    )
  return tuple(found)


# --- drawing ---


def unchanged(c: Config, workdir: Path, model: Model) -> None:
  """Opens a model that has drawn everything where it may be another one now.  Raises UserError
  where it is.
  """
  if provenance.doubtful(provenance.noted(workdir).get(model.name), model.source):
    provenance.compare(
      workdir,
      model.name,
      provenance.about(model.source, origin.open_model(model.source, c.model, c.seed)),
    )


def opened(c: Config, plan: Plan, model: Model, done: int) -> Drawing:
  """A model that draws what comes after the first `done` rows of draws.jsonl.

  Everything is checked at the call, before the first draw.
  """
  found, template = common.templated(c, origin.open_model(model.source, c.model, c.seed))
  judges = rewards.open_all(c.rewards, c.model, found, c.data.prompt + c.sampling.response)

  def cell(temperature: float) -> Iterator[Row]:
    start = plan.start(model, temperature, done)
    key = jax.random.fold_in(
      jax.random.key(c.seed), zlib.crc32(f"{model.name} {temperature:g}".encode())
    )
    groups = generate.drawn(
      c,
      found,
      template,
      plan.prompts,
      {"rewards": judges},
      temperature=temperature,
      key=key,
      start=start,
      name=f"{c.stage} {model.name} {temperature:g}",
    )

    def rows() -> Iterator[Row]:
      for at, (drawn, scores) in enumerate(groups, start):
        texts = rewards.responses(found.tokenizer, drawn)
        each = {name: values.tolist() for name, values in scores.get("rewards", {}).items()}
        row = {"model": model.name, "temperature": temperature, "prompt": at, "responses": texts}
        yield row | ({"scores": each} if judges else {})

    return rows()

  cells = [cell(temperature) for temperature in plan.temperatures]
  about = provenance.about(model.source, found)
  return Drawing(itertools.chain.from_iterable(cells), about, rewards.manifest(judges))


# --- gathering ---


def gathered(c: Config, plan: Plan, drawn: Sequence[Row], at: int) -> Mapping[str, Any]:
  """The line of samples.jsonl for a prompt, as `instructjax label` reads it."""
  groups = []
  for row in drawn[at :: len(plan.prompts)]:
    source = {"model": row["model"], "temperature": row["temperature"], "seed": c.seed}
    scores = row.get("scores", {})
    each = [
      {name: values[i] for name, values in scores.items()} for i in range(len(row["responses"]))
    ]
    groups.append(
      [Output(text, source, one) for text, one in zip(row["responses"], each, strict=True)]
    )
  asked = records.as_row(plan.prompts[at])
  kept = (
    choose(groups, c.k, f"{c.seed}/{at}") if c.k else [one for group in groups for one in group]
  )
  line = asked | {"responses": [one.text for one in kept], "sources": [one.source for one in kept]}
  names = kept[0].scores if kept else {}
  return line | (
    {"scores": {name: [one.scores[name] for one in kept] for name in names}} if names else {}
  )


def told(
  c: Config, plan: Plan, samples: Sequence[Mapping[str, Any]], path: Path, *, again: bool
) -> str:
  """What there is now, in words."""
  counts = [len(row["responses"]) for row in samples]
  words = [
    f"{path}: {sum(counts)} responses to {len(samples)} prompts{', drawn before' if again else ''}"
  ]
  few = sum(count < c.k for count in counts)
  if few:
    words.append(
      f"{few} prompts have fewer than config.k={c.k} different responses, at least {min(counts)}; "
      "raise config.n"
    )
  return "\n".join(words)
