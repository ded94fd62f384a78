"""What every stage does around its steps: devices, run directory, loop, the model it leaves."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from instructjax import compiler, sharding, steps
from instructjax.data.batches import corpora, prefetch
from instructjax.data.records import records
from instructjax.data.tokens import chat
from instructjax.errors import UserError, naming
from instructjax.models import lora
from instructjax.runs import origin, writers
from instructjax.runs.checkpoint import Checkpoints, first_not_finite
from instructjax.runs.hooks import Hook
from instructjax.runs.loop import Evaluate, SecondsAtPeak, fit, stopped_before
from instructjax.runs.profile import Profile
from instructjax.settings import AnySettings, TrainingSettings
from instructjax.settings.fields import to_dict
from instructjax.settings.subjects import AnyModelSettings, MeshSettings
from instructjax.stages import trainable
from instructjax.stages.wiring import Part, Stage
from instructjax.system.places import AnyPath
from instructjax.types import Params, PyTree, TrainState


@contextlib.contextmanager
def devices(mesh: MeshSettings) -> Iterator[int]:
  """Sets the mesh and yields the number of parts of a batch; one device works without a mesh.

  Raises UserError where there are fewer devices than the mesh takes, and where several processes
  would not use all of theirs: some would wait for others that have no part. An option that the
  compiler does not know is a UserError too.
  """
  # The product is checked here, where the fields have names, and not in `sharding.make_mesh`.
  wanted, available = mesh.data * mesh.fsdp * mesh.model, jax.device_count()
  sizes = (
    f"config.mesh.data={mesh.data}, config.mesh.fsdp={mesh.fsdp}, config.mesh.model={mesh.model}"
  )
  if wanted > available:
    raise UserError(
      f"{sizes} take {wanted} devices and {available} are there: choose three numbers whose "
      "product "
      f"is at most {available}"
    )
  if jax.process_count() > 1 and wanted != available:
    raise UserError(
      f"{sizes} take {wanted} of the {available} devices of {jax.process_count()} processes: "
      "choose "
      f"three numbers whose product is {available}"
    )
  # One device needs no mesh: every helper of `sharding` is then the identity.
  if wanted == 1:
    compiler.check(mesh.compiler)
    yield 1
    return
  with jax.set_mesh(sharding.make_mesh(mesh.data, mesh.fsdp, mesh.model)):
    compiler.check(mesh.compiler)
    yield mesh.data * mesh.fsdp


# --- models and data ---


def open_policy(source: str, settings: AnyModelSettings, seed: int) -> origin.Origin:
  """The language model of a source.  Raises UserError, which names the source, where it is none."""
  with naming("config.model.source", source):
    return origin.open_model(source, settings, seed)


def with_template(name: str, model: origin.Origin) -> tuple[origin.Origin, chat.Template | None]:
  """The model as it will say that it was trained or sampled, and the chat template of that name.

  Says so on stderr where the model was trained with another template.
  """
  with naming("config.data.template", name):
    template = origin.chat_template(name, model.about, model.tokenizer)
  # A model sees other tokens under another template; nothing fails, so it is at least said.
  before = origin.template_of(model.about)
  now = chat.about(template)["fingerprint"] if template else ""
  if before and before != now and jax.process_index() == 0:
    reads = "plain text" if template is None else template.name
    print(
      f"note: the model was trained on a chat template ({before[:8]}), this run reads {reads}; "
      "config.data.template=chat goes on with the model's",
      file=sys.stderr,
      flush=True,
    )
  about = model.about | {"template": chat.about(template) if template else None}
  return model._replace(about=about), template


def fingerprints(**data: Sequence | str) -> dict[str, str]:
  """The fingerprints of records by name; a text is a fingerprint already."""
  return {
    name: rows if isinstance(rows, str) else records.fingerprint(rows)
    for name, rows in data.items()
  }


def rows_for(size: int, shards: int) -> int:
  """The number of rows of an evaluation's batch: at least `size`, and a multiple of the shards."""
  return -(-size // shards) * shards


# --- a run ---


def open_run(
  settings: AnySettings, workdir: AnyPath, sinks: tuple[str, ...], prints: Mapping[str, str]
) -> contextlib.AbstractContextManager[writers.Writer]:
  """The run directory; other data under the same names are another run."""
  config = run_config(settings, prints)
  return writers.open_run(workdir, config, seed=settings.seed, sinks=sinks)


def check_same_run(settings: AnySettings, workdir: AnyPath, prints: Mapping[str, str]) -> None:
  """Raises UserError where a directory holds results of other settings or other data."""
  writers.check_same_run(workdir, run_config(settings, prints))


def run_config(settings: AnySettings, prints: Mapping[str, str]) -> dict[str, Any]:
  """What config.json says of a run: its settings, and the fingerprints of its data."""
  return to_dict(settings) | {"fingerprints": dict(prints)}


def start(stage: Stage, seed: int, *models: Params) -> tuple[TrainState, PyTree]:
  """The state at step 0 and what is frozen, on the devices where the compiled step expects them."""
  state, frozen = stage.init(jax.random.key(seed), *models)
  return steps.commit(state), frozen


class Programs(NamedTuple):
  """A step as it runs: its compiled programs, of which the last one takes the state over.

  early   (state, frozen, batch) -> what the next one takes in the place of the batch
  last    (state, frozen, what the early ones have made of the batch) -> (state, metrics)
  jitted  those that `jax.jit` made, whose compilations can be counted
  """

  early: tuple[Callable[..., Any], ...]
  last: Callable[..., tuple[TrainState, Any]]
  jitted: tuple[Any, ...]


def programs_of(stage: Stage, state: TrainState, options: str = "") -> Programs:
  """Compiles a step. One of several parts is as many programs, so that a run can stop between them.

  What a part writes takes its place beside the batch, under its name. `options` are the user's for
  the compiler.
  """
  if len(stage.parts) == 1:
    step = steps.compiled(stage.step, state, options)
    return Programs((), step, (step,))
  *early, last = stage.parts
  early_programs = [compiler.jit(part.function, options) for part in early]
  last_program = steps.compiled(last.function, state, options)

  def early_part(part: Part, program: Callable[..., Any]) -> Callable[..., Any]:
    def run(state: TrainState, frozen: PyTree, values: Mapping[str, Any]) -> dict[str, Any]:
      inputs = [values[name] for name in part.reads]
      return {**values, part.writes: program(state, frozen, *inputs)}

    return run

  def run_last(state: TrainState, frozen: PyTree, values: Mapping[str, Any]) -> Any:
    inputs = [values[name] for name in last.reads]
    return last_program(state, frozen, *inputs)

  return Programs(
    tuple(map(early_part, early, early_programs)), run_last, (*early_programs, last_program)
  )


class Training(NamedTuple):
  """What the loop of a stage needs besides its settings.

  stage           the wiring
  state, frozen   where it starts
  batches         batch i, by name
  about           what is said about the model that is trained
  prints          fingerprints of the data
  evaluate        what is measured on held-out data, if anything
  evaluate_every  steps between evaluations; 0 evaluates at the end alone
  programs        the compiled step, where it is not that of the wiring
  part_seconds    the seconds of the parts of a step, where it is made of several
  samples         writes samples, where the stage draws any
  """

  stage: Stage
  state: TrainState
  frozen: PyTree
  batches: Callable[[int], Any]
  about: Mapping[str, Any]
  prints: Mapping[str, str]
  evaluate: Evaluate | None = None
  evaluate_every: int = 0
  programs: Programs | None = None
  part_seconds: Callable[[], Mapping[str, float]] | None = None
  samples: Hook | None = None


# Of (stage, state, what is frozen): the seconds of each part of a step with rows of full length at
# the peak of the devices; None where that is not known (`plan.meter`).
Meter = Callable[[Stage, TrainState, PyTree], Mapping[str, float] | None]


class Watch(NamedTuple):
  """Who looks on while a stage trains; nobody, as it is.

  meter    counts the work of a step, for its MFU
  hook     is called at its steps, and may stop the run
  profile  names steps whose trace is written
  """

  meter: Meter | None = None
  hook: Hook | None = None
  profile: Profile | None = None


NOBODY = Watch()


def seconds_at_peak(watch: Watch, training: Training) -> SecondsAtPeak | None:
  """The seconds that the real tokens of a step take at the peak; None where it is not known."""
  if watch.meter is None:
    return None
  stage = training.stage
  at_full_length = watch.meter(stage, training.state, training.frozen)
  if at_full_length is None:
    return None
  parts = [(at_full_length[part.name], part.share) for part in stage.parts]
  return lambda metrics: sum(seconds * share(metrics) for seconds, share in parts)


def first_start(workdir: AnyPath, stage: str) -> float:
  """When a stage was first started in this directory, in seconds since 1970; now, if never.

  It stands in manifest.json, so that it survives whatever ends the run.
  """
  starts = read_noted(workdir, "first_start")
  if stage not in starts:
    starts = starts | {stage: round(time.time(), 3)}
    writers.note(workdir, first_start=starts)
  return starts[stage]


def read_noted(workdir: AnyPath, name: str) -> dict[str, Any]:
  """What manifest.json says of each stage under a name; empty where it says nothing."""
  return writers.read_manifest(workdir).get(name, {})


def train(
  settings: TrainingSettings,
  workdir: AnyPath,
  writer: writers.Writer,
  training: Training,
  watch: Watch = NOBODY,
) -> TrainState:
  """Runs the loop of a stage and returns its last state.

  Each checkpoint holds the fingerprint of the settings beside those of the data. Batches are made
  ahead; how long the steps waited for them stands in manifest.json.
  """
  stage, frozen = training.stage, training.frozen
  programs = training.programs or programs_of(stage, training.state, settings.mesh.compiler)

  def with_frozen(program: Callable[..., Any]) -> Callable[[TrainState, Any], Any]:
    return lambda state, values: program(state, frozen, values)

  # A checkpoint of other settings or other data is refused when the run goes on.
  prints = {"configuration": writers.fingerprint(to_dict(settings))} | dict(training.prints)
  checkpoints = Checkpoints(
    workdir / "checkpoints" / settings.stage, keep=settings.keep, best=settings.best
  )
  if watch.hook is not None:
    called = {"name": watch.hook.name, "every": watch.hook.every, "sha256": watch.hook.sha256}
    writers.note(workdir, hook=read_noted(workdir, "hook") | {settings.stage: called})
  begun = time.perf_counter()
  with prefetch.ahead(corpora.place_batches(training.batches), stop=stage.calls) as feed:
    state = fit(
      with_frozen(programs.last),
      training.state,
      feed.batch,
      early=[with_frozen(program) for program in programs.early],
      steps=stage.calls,
      stage=settings.stage,
      writer=writer,
      checkpoints=checkpoints,
      checkpoint_every=settings.checkpoint_every,
      log_every=settings.log_every,
      evaluate=training.evaluate,
      evaluate_every=training.evaluate_every,
      extra={"model": training.about, "fingerprints": prints},
      seconds_at_peak=seconds_at_peak(watch, training),
      part_seconds=training.part_seconds,
      first_start=first_start(workdir, settings.stage),
      hook=watch.hook,
      profile=watch.profile,
      samples=training.samples,
    )
  note_stop(workdir, settings.stage, int(state.iteration), stopped_before(checkpoints))
  elapsed = time.perf_counter() - begun
  seconds = {"data": round(feed.waited(), 3), "training": round(elapsed, 3)}
  writers.note(workdir, seconds={settings.stage: seconds})
  return state


def note_stop(workdir: AnyPath, stage: str, step: int, reason: str) -> None:
  """Notes in manifest.json that a hook stopped a stage, and why; with "" that none did.

  A run that a hook has stopped may go on without it, and is then stopped no more.
  """
  before = read_noted(workdir, "stopped")
  others = {name: stop for name, stop in before.items() if name != stage}
  stops = others | {stage: {"step": step, "by": reason}} if reason else others
  if stops != before:
    writers.note(workdir, stopped=stops)


# --- what a stage leaves ---


def whole_model(
  top: int | None, source: str, settings: AnyModelSettings, seed: int, trained: Params
) -> Params:
  """The whole model in float32, or its adapter.

  Blocks that were not trained come from the source again: the trunk was rounded.
  """
  if top is None:
    return trained  # all weights, or an adapter that names its base
  base = lora.merge(origin.open_model(source, settings, seed).params)
  return trainable.joined(base, trained)


def leave_policy(
  settings: AnySettings, workdir: AnyPath, step: int, params: Params, about: Mapping[str, Any]
) -> None:
  """Leaves a policy for the next stage; an adapter also in the layout of PEFT, in `adapter/`.

  Raises UserError where a weight is not finite, before anything is written.
  """
  leaf = first_not_finite(params)
  if leaf:
    raise UserError(
      f"{workdir}: no model is left, because '{leaf}' is not finite; lower the learning rate or "
      "clip the gradient, in a new --workdir"
    )
  if "adapter" in about:
    trainable.save_adapter(workdir / "adapter", params["adapter"], about)
  leave_model(settings, workdir, step, params, about, "policy")


def leave_model(
  settings: AnySettings,
  workdir: AnyPath,
  step: int,
  params: PyTree,
  about: Mapping[str, Any],
  kind: str,
) -> None:
  """Leaves the model of a stage, and says in manifest.json, last of all, that it is finished.

  Raises UserError where a weight is not finite, and where the disk does not take it.
  """
  origin.finish(workdir, step, params, about, kind)
  writers.mark_finished(workdir, settings.stage, step)


def is_finished(settings: AnySettings, workdir: AnyPath, has_hook: bool = False) -> bool:
  """Returns whether a run of these settings is finished; it says so where it is.

  A run that a hook has stopped is finished for a command with a hook, and goes on without one.

  The first of several processes looks, and all get its answer: another one may see an older state
  of a shared folder. A damaged file is for the run itself to name.
  """
  step, reason = None, ""
  if jax.process_index() == 0:
    with contextlib.suppress(UserError):
      step = writers.finished_step(workdir, to_dict(settings))
      reason = read_noted(workdir, "stopped").get(settings.stage, {}).get("by", "")
    if step is not None and not origin.has_left_model(workdir, step):
      step = None
    if reason and not has_hook:
      step = None
  is_done = step is not None
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    is_done = bool(multihost_utils.broadcast_one_to_all(jnp.asarray(is_done)))
  if is_done:
    stopped = f", where a hook stopped it: {reason}; without --hook it goes on" if reason else ""
    show(f"{workdir}: is finished already, at step {step}{stopped}")
  return is_done


def show(text: str) -> None:
  """Prints, in one process of several."""
  if jax.process_index() == 0:
    print(text, flush=True)
