"""`instructjax sample`: what models answer to prompts, at one or several temperatures."""

from __future__ import annotations

import dataclasses
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from instructjax import rewards
from instructjax.data.batches import corpora
from instructjax.data.curation.outputs import Output, choose
from instructjax.data.records import records, sources
from instructjax.data.records.records import Prompt
from instructjax.errors import UserError, naming
from instructjax.runs import origin, provenance, writers
from instructjax.settings.sampling import SampleSettings
from instructjax.stages import running
from instructjax.stages.drawing import SORTED, as_completion, draw_responses
from instructjax.stages.wiring import require_multiple
from instructjax.system import jsons, keys, places
from instructjax.system.places import AnyPath

# Of draws.jsonl: model, temperature, prompt (its number), of (its fingerprint), responses, scores.
Row = dict[str, Any]


class Model(NamedTuple):
  """Where a model is from, and what it is called in the samples."""

  name: str
  source: str


class Drawing(NamedTuple):
  """An open model: the rows it draws, and what the manifest says of it and of its rewards."""

  rows: Iterator[Row]
  about: dict[str, Any]
  rewards: dict[str, Any]


class Plan(NamedTuple):
  """What is sampled, cell by cell: one model at one temperature, in the order of draws.jsonl."""

  models: tuple[Model, ...]
  temperatures: tuple[float, ...]
  prompts: Sequence[Prompt]

  @property
  def cells(self) -> int:
    return len(self.models) * len(self.temperatures)

  def key(self, place: int) -> dict[str, Any]:
    """What a row of draws.jsonl says of itself that stands at this place, from 0 on."""
    cell, number = divmod(place, len(self.prompts))
    model, temperature = divmod(cell, len(self.temperatures))
    return {
      "model": self.models[model].name,
      "temperature": self.temperatures[temperature],
      "prompt": number,
      "of": records.fingerprint([self.prompts[number]])[:16],
    }

  def whole_rows(self, rows: int, group: int) -> int:
    """The number of rows of draws.jsonl before the group of batches that was not finished."""
    cell, within = divmod(rows, len(self.prompts))
    return cell * len(self.prompts) + within // group * group

  def waiting(self, rows: int) -> list[Model]:
    """The models that have not drawn everything where draws.jsonl has this many rows."""
    rows_a_model = len(self.temperatures) * len(self.prompts)
    return [model for number, model in enumerate(self.models, 1) if rows < number * rows_a_model]

  def has_begun(self, model: Model, rows: int) -> bool:
    """Returns whether a model has drawn anything where draws.jsonl has this many rows."""
    rows_a_model = len(self.temperatures) * len(self.prompts)
    return rows > self.models.index(model) * rows_a_model

  def start(self, model: Model, temperature: float, rows: int) -> int:
    """The first prompt that a cell has not answered where draws.jsonl has this many rows."""
    begin = self.cell(model, temperature) * len(self.prompts)
    return min(max(rows - begin, 0), len(self.prompts))

  def cell(self, model: Model, temperature: float) -> int:
    """The number of the cell of a model and a temperature."""
    first = self.models.index(model) * len(self.temperatures)
    return first + self.temperatures.index(temperature)


def run(settings: SampleSettings, workdir: AnyPath, sinks: tuple[str, ...] = ()) -> None:
  """Leaves in samples.jsonl, for each prompt, `n` responses of each model at each temperature.

  With `k` it leaves that many different responses of all. Models are opened one after the other.
  draws.jsonl holds what they drew, and a stopped run goes on from there. A `config.prompt` is just
  answered, and may be followed by another in the same directory.

  Raises UserError for whatever is wrong before the first draw, and where a model that has drawn has
  other weights now.
  """
  draws = workdir / writers.DRAWS
  # What was drawn is read before the run is opened, so the directory is held from the beginning.
  with running.devices(settings.mesh) as shards, writers.holding(workdir):
    require_multiple(settings.batch * settings.n, shards, "config.batch x config.n", "devices")
    plan = make_plan(settings)
    prints = running.fingerprints(prompts=plan.prompts)
    running.check_same_run(settings, workdir, prints)
    # Only whole groups of batches can be gone on from: their prompts were sorted together.
    rows = [] if settings.prompt else read_draws(draws, plan)
    rows = rows[: plan.whole_rows(len(rows), SORTED * settings.batch)]
    waiting = plan.waiting(len(rows))
    for model in plan.models[: len(plan.models) - len(waiting)]:
      check_unchanged(settings, workdir, model)
    # The first model is opened, and with it everything checked, before there is a directory.
    opened = []
    if waiting:
      opened = [open_drawing(settings, plan, waiting[0], len(rows))]
      if plan.has_begun(waiting[0], len(rows)):
        provenance.compare(workdir, waiting[0].name, opened[0].about)
    with running.open_run(settings, workdir, sinks, prints) as writer:
      if not settings.prompt:
        writers.keep(draws, rows)
      for model in waiting:
        drawing = opened.pop() if opened else open_drawing(settings, plan, model, len(rows))
        models = provenance.noted(workdir) | {model.name: drawing.about}
        writers.note(workdir, models=models)
        if drawing.rewards:
          writers.note(workdir, rewards=drawing.rewards)
        for row in drawing.rows:
          rows.append(row)
          if not settings.prompt:
            writers.append(draws, [row])
          if plan.cells == 1 and not settings.k:
            show_row(plan, row)
        del drawing  # and the model with it: the next one needs its memory
      rows_by_prompt: dict[int, list[Row]] = {number: [] for number in range(len(plan.prompts))}
      for row in rows:
        rows_by_prompt[row["prompt"]].append(row)
      samples = [gather(settings, plan, *item) for item in rows_by_prompt.items()]
      if settings.prompt:
        writer.samples(samples)
      else:
        writers.keep(workdir / "samples.jsonl", samples)
    running.show(describe(settings, samples, workdir / "samples.jsonl", drawn_before=not waiting))


def show_row(plan: Plan, row: Row) -> None:
  """Prints a prompt and the responses to it."""
  responses = [response.strip() for response in row["responses"]]
  running.show("\n".join([f"> {plan.prompts[row['prompt']].prompt}", *responses, ""]))


# --- the plan ---


def make_plan(settings: SampleSettings) -> Plan:
  """What the settings ask for.

  Raises UserError for whatever can be wrong before a model is opened.
  """
  models = named_models(settings.model.source, settings.model.shape)
  for model in models:
    if origin.is_run(model.source):
      origin.finished(places.directory(model.source), "policy")
  temperatures = settings.sampling.temperature
  most = settings.n * len(models) * len(temperatures)
  if settings.k > most:
    raise UserError(
      f"config.k={settings.k}: {len(models)} models x {len(temperatures)} temperatures x "
      f"config.n={settings.n} draw {most} responses of a prompt; lower it, or raise config.n"
    )
  if settings.prompt:
    return Plan(models, temperatures, [Prompt(settings.prompt)])
  prompts = corpora.read_one(settings.data, "prompts", "prompt")
  return Plan(models, temperatures, prompts[: settings.prompts or None])


def named_models(text: str, shape: str) -> tuple[Model, ...]:
  """The models of "sft=runs/sft,ppo=runs/ppo"; without a name it is the last part of the source.

  Raises UserError where two have one name.
  """
  # A path may hold a comma or an equals sign; what exists is a path.
  pieces = [text] if sources.exists(text) else [piece.strip() for piece in text.split(",")]
  models = []
  for piece in pieces:
    match = re.fullmatch(r"([\w.:+-]+)=(.+)", piece)
    if match and not sources.exists(piece):
      models.append(Model(match[1], match[2]))
    else:
      models.append(Model(Path(piece).name or shape, piece))
  names = [model.name for model in models]
  for model in models:
    if names.count(model.name) > 1:
      raise UserError(
        f"--model: two models are called {model.name!r}; name them: --model=NAME={model.source}"
      )
  return tuple(models)


# --- drawing ---


def read_draws(path: AnyPath, plan: Plan) -> list[Row]:
  """The rows of draws.jsonl, each of which is at its place in the plan.

  Raises UserError for a row of another model, temperature or prompt than belongs there.
  """
  rows = writers.rows(path)
  cells = plan.cells * len(plan.prompts)
  for place, row in enumerate(rows):
    key = plan.key(place) if place < cells else {}
    # The first runs of version 0.2 wrote no fingerprint of the prompt.
    expected = {name: value for name, value in key.items() if name != "of" or name in row}
    if not expected or any(row.get(name) != value for name, value in expected.items()):
      raise UserError(
        f"{path}:{place + 1}: is of model {row.get('model')!r}, temperature "
        f"{row.get('temperature')} and prompt {row.get('prompt')}, which does not belong there: "
        "two processes wrote here, or the file was changed; delete it, or name another --workdir"
      )
  return rows


def check_unchanged(settings: SampleSettings, workdir: AnyPath, model: Model) -> None:
  """Opens a model that has drawn everything, where it may be another one now.

  Raises UserError where it is.
  """
  if provenance.doubtful(provenance.noted(workdir).get(model.name), model.source):
    opened = running.open_policy(model.source, settings.model, settings.seed)
    provenance.compare(workdir, model.name, provenance.about(model.source, opened))


def open_drawing(settings: SampleSettings, plan: Plan, model: Model, done: int) -> Drawing:
  """A model that draws what comes after the first `done` rows of draws.jsonl.

  Everything is checked at the call, before the first draw.
  """
  opened = running.open_policy(model.source, settings.model, settings.seed)
  policy, template = running.with_template(settings.data.template, opened)
  length = settings.data.prompt + settings.sampling.response
  with naming("config.rewards", settings.rewards):
    reward_sources = rewards.open_all(settings.rewards, settings.model, policy, length)

  def rows_at(temperature: float) -> Iterator[Row]:
    start = plan.start(model, temperature, done)
    cell_start = plan.cell(model, temperature) * len(plan.prompts)
    # A cell has a key of its own, so that its draws do not depend on what else is sampled.
    cell = zlib.crc32(f"{model.name} {temperature:g}".encode())
    responses = draw_responses(
      settings,
      policy,
      template,
      plan.prompts,
      {"rewards": reward_sources},
      temperature=temperature,
      key=keys.run_key(settings.seed, "samples", cell),
      start=start,
      name=f"{settings.stage} {model.name} {temperature:g}",
    )

    def rows() -> Iterator[Row]:
      for number, (drawn_rows, scores) in enumerate(responses, start):
        place = cell_start + number
        row: Row = plan.key(place) | {
          "responses": rewards.responses(policy.tokenizer, drawn_rows),
        }
        if reward_sources:
          by_name = scores["rewards"]
          # A reward that abstains gives null.
          row["scores"] = {name: jsons.finite(values.tolist()) for name, values in by_name.items()}
        yield row

    return rows()

  cells = [rows_at(temperature) for temperature in plan.temperatures]
  about = provenance.about(model.source, policy)
  return Drawing(itertools.chain.from_iterable(cells), about, rewards.manifest(reward_sources))


# --- gathering ---


def gather(
  settings: SampleSettings, plan: Plan, number: int, rows: Sequence[Row]
) -> Mapping[str, Any]:
  """The line of samples.jsonl for a prompt and its draws, as `instructjax label` reads it."""
  groups = []
  for row in rows:
    source = {"model": row["model"], "temperature": row["temperature"], "seed": settings.seed}
    outputs = []
    for at, response in enumerate(row["responses"]):
      scores = {name: values[at] for name, values in row.get("scores", {}).items()}
      text = as_completion(response, settings.data)
      outputs.append(Output(text, source, scores))
    groups.append(outputs)
  if settings.k:
    outputs = choose(groups, settings.k, f"{settings.seed}/{number}")
  else:
    outputs = list(itertools.chain.from_iterable(groups))
  # Further fields are for rewards: the labeling page has no place for a right answer.
  prompt = dataclasses.replace(plan.prompts[number], fields=None)
  line = records.as_row(prompt) | {
    "responses": [output.text for output in outputs],
    "sources": [output.source for output in outputs],
  }
  if outputs and outputs[0].scores:
    names = outputs[0].scores
    line["scores"] = {name: [output.scores[name] for output in outputs] for name in names}
  return line


def describe(
  settings: SampleSettings,
  samples: Sequence[Mapping[str, Any]],
  path: AnyPath,
  *,
  drawn_before: bool,
) -> str:
  """What samples.jsonl holds now, in words."""
  counts = [len(row["responses"]) for row in samples]
  before = ", drawn before" if drawn_before else ""
  lines = [f"{path}: {sum(counts)} responses to {len(samples)} prompts{before}"]
  few = sum(count < settings.k for count in counts)
  if few:
    lines.append(
      f"{few} prompts have fewer than config.k={settings.k} different responses, at least "
      f"{min(counts)}; raise config.n"
    )
  return "\n".join(lines)
