"""Checkpoints: a pytree of arrays and a JSON object for each step, written by Orbax while the
training goes on.

A checkpoint appears whole or not at all, and nothing is deleted before its successor is
complete.  Its JSON lists the name, shape and type of every leaf, so that one of another model is
told apart before anything is read, and the sum of its bits, which finds what a disk has changed
(Orbax reads a flipped byte of an array without a word).
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.types import PyTree

LOWER = (
  "loss",
  "nll",
)  # a metric with one of these words in its name is better lower, any other higher


class Checkpoints:
  """The checkpoints of one folder, which is made by the first save.

    save(step, state, extra, metrics)
                                 starts to write the state and a JSON object; the last `keep`
                                 steps stay, and the one with the best metric of the name `best`
                                 (LOWER says which way), if one is named
    wait()                       returns when the write is complete; every other method waits by itself
    latest()                     the last complete step, or None where there is none
    extra(step=None)             the JSON object of a step (of the last one)
    restore(state_like, step=None)
                                 (state, extra): the arrays with the shapes, types and shardings
                                 of `state_like`, whose leaves may be arrays or
                                 `jax.ShapeDtypeStruct`s; the mesh may be another one
    leaves()                     the names of the leaves of the last state with their shapes
    part(name, like)             one subtree of it

  `save` returns when the state is copied, so that it may be donated.  A step that was saved
  before is not written again. With several processes all of them call every method.
  """

  def __init__(self, folder: str | Path, keep: int = 2, best: str = ""):
    self.folder = Path(folder).absolute()
    self.keep = keep
    self.best = best
    self._open: Any = None  # Orbax's manager, from the first save until `wait`
    self._step = 0  # the step that it writes

  def save(
    self,
    step: int,
    state: PyTree,
    extra: dict[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Raises UserError when this or the last one cannot be written (a full disk); the steps before
    are still there.
    """
    import orbax.checkpoint as ocp

    arrays = {name: _data(leaf) for name, leaf in flatten(state).items()}
    leaves = {name: _describe(leaf) for name, leaf in flatten(state).items()}
    about = {"leaves": leaves, "sums": sums(arrays), "extra": extra or {}}
    args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
    value = (metrics or {}).get(self.best, math.nan)
    with self._written():
      if self._open is None:
        self._open, self._step = self._writer(), step
      self._open.wait_until_finished()
      self._step = step
      if step not in self._open.all_steps():
        measured = {self.best: float(value)} if math.isfinite(value) else None
        self._open.save(step, args=args, metrics=measured, force=True)

  def wait(self) -> None:
    """Raises UserError when the last checkpoint could not be written."""
    if self._open is not None:
      with self._written():
        self._open.wait_until_finished()
        self._close()

  def latest(self) -> int | None:
    """The last complete step."""
    return max(self.steps(), default=None)

  def steps(self) -> list[int]:
    """All complete steps, in order."""
    self.wait()
    found = self.folder.iterdir() if self.folder.is_dir() else ()
    return sorted(int(path.name) for path in found if path.name.isdigit())

  def extra(self, step: int | None = None) -> dict[str, Any]:
    """The JSON object that was saved with a step."""
    return self._about(self._found(step))["extra"]

  def restore(self, state_like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
    """Raises UserError naming the first leaf in which the checkpoint and `state_like` differ."""
    import orbax.checkpoint as ocp

    step = self._found(step)
    about, wanted = self._about(step), flatten(state_like)
    compare(
      about["leaves"],
      {name: _describe(leaf) for name, leaf in wanted.items()},
      self.folder / str(step),
    )
    like = {name: _abstract(leaf) for name, leaf in wanted.items()}
    with self._readable(step):
      with self._reader() as manager:
        found = manager.restore(
          step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like))
        )["state"]
      _check_sums(found, about)
    leaves = [_undata(found[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves), about["extra"]

  def part(self, name: str, like: PyTree) -> PyTree:
    """The subtree `name` ("params/policy") of the last state alone, with the shapes and shardings
    of `like`.

    Raises UserError as `restore` does.
    """
    import orbax.checkpoint as ocp

    step, wanted = self._found(None), {f"{name}/{leaf}": x for leaf, x in flatten(like).items()}
    about = self._about(step)
    found = {leaf: x for leaf, x in about["leaves"].items() if leaf.startswith(f"{name}/")}
    compare(found, {leaf: _describe(x) for leaf, x in wanted.items()}, self.folder / str(step))
    item = {leaf: _abstract(x) for leaf, x in wanted.items()}
    args = ocp.args.PyTreeRestore(
      item=item,
      restore_args=ocp.checkpoint_utils.construct_restore_args(item),
      partial_restore=True,
    )
    with self._readable(step), quiet():
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(self.folder / str(step) / "state", args=args)
      _check_sums(arrays, about)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[leaf] for leaf in wanted])

  def leaves(self) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the last state, by its name."""
    return {
      name: tuple(shape) for name, (shape, _) in self._about(self._found(None))["leaves"].items()
    }

  def _found(self, step: int | None) -> int:
    last = self.latest()
    found = last if step is None else step
    if found is None or not (self.folder / str(found)).is_dir():
      raise UserError(
        f"{self.folder}: holds no checkpoint{'' if step is None else f' of step {step}'}; run it "
        "first"
      )
    return found

  def _about(self, step: int) -> dict[str, Any]:
    with self._readable(step):
      return self._peek(step)

  def _peek(self, step: int) -> dict[str, Any]:
    """What a step says about itself.  Raises an error of any type where it is damaged, ValueError
    where it is not ours.
    """
    import orbax.checkpoint as ocp

    with self._reader() as manager:
      about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
    if not (
      isinstance(about, dict)
      and all(isinstance(about.get(name), dict) for name in ("leaves", "sums", "extra"))
    ):
      raise ValueError("it was not written by instructjax")
    return about

  @contextlib.contextmanager
  def _readable(self, step: int) -> Iterator[None]:
    """A damaged checkpoint is the user's to mend: says which step before it is good."""
    try:
      yield
    except Exception as error:  # of truncated files Orbax raises a bare one
      if isinstance(error, UserError):
        raise
      before = next(
        (other for other in reversed(self.steps()) if other < step and self._is_good(other)), None
      )
      go_on = "no good step is left here" if before is None else f"it goes on from step {before}"
      place = self.folder / str(step)
      raise UserError(
        f"{place}: cannot be read ({reason(error)}); move this folder away and run the command "
        f"that wrote it again: {go_on}"
      ) from error

  def _is_good(self, step: int) -> bool:
    try:
      return bool(self._about(step))
    except UserError:
      return False

  @contextlib.contextmanager
  def _reader(self) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    with (
      quiet(),
      ocp.CheckpointManager(
        self.folder, options=ocp.CheckpointManagerOptions(read_only=True)
      ) as manager,
    ):
      yield manager

  def _writer(self) -> Any:
    import orbax.checkpoint as ocp

    policies = ocp.checkpoint_managers
    value = lambda metrics: metrics[self.best]
    kept: list = [policies.LatestN(self.keep)]
    if self.best:
      lower = any(word in self.best for word in LOWER)
      kept.append(
        policies.BestN(
          get_metric_fn=value, reverse=lower, n=1, keep_checkpoints_without_metrics=False
        )
      )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(kept),
      best_fn=value if self.best else None,
      cleanup_tmp_directories=True,  # what a process that was killed left behind
    )
    with quiet():
      return ocp.CheckpointManager(self.folder, options=options)

  @contextlib.contextmanager
  def _written(self) -> Iterator[None]:
    try:
      with quiet():
        yield
    except (
      OSError,
      ValueError,
      RuntimeError,
    ) as error:  # tensorstore reports a full disk as a ValueError
      with contextlib.suppress(OSError, ValueError, RuntimeError):
        self._close()
      self._sweep()
      last = self.latest()
      kept = "no step was saved before" if last is None else f"step {last} is kept"
      raise UserError(
        f"{self.folder}: the checkpoint of step {self._step} could not be written "
        f"({reason(error)}); {kept}. Free some "
        f"space ({shutil.disk_usage(_existing(self.folder)).free >> 20} MiB are left) and run the "
        "same command again"
      ) from error

  def _close(self) -> None:
    manager, self._open = self._open, None
    if manager is not None:
      manager.close()

  def _sweep(self) -> None:
    """Removes what an interrupted save left behind."""
    for path in self.folder.glob("*") if self.folder.is_dir() else ():
      if not path.name.isdigit():
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without Orbax's log: the exceptions say it all."""
  levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
  for name in levels:
    logging.getLogger(name).setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    for name, level in levels.items():
      logging.getLogger(name).setLevel(level)


def load_params(folder: str | Path, like: PyTree) -> PyTree:
  """The parameters of a finished stage (`origin.finish`), with the shapes and shardings of `like`."""
  return Checkpoints(folder).restore({"params": like})[0]["params"]


def compare(found: dict[str, list], wanted: dict[str, list], place: Path) -> None:
  """Raises UserError naming the first leaf that is missing, left over, or of another shape or type."""
  remedy = (
    "it belongs to another model or configuration: use its own settings, or another directory"
  )
  for name, (shape, dtype) in wanted.items():
    if name not in found:
      raise UserError(f"{place}: '{name}' of shape {shape} is not in the checkpoint; {remedy}")
    if found[name] != [shape, dtype]:
      raise UserError(
        f"{place}: '{name}' is {found[name][1]}{found[name][0]} in the checkpoint, {dtype}{shape} "
        f"is expected; {remedy}"
      )
  for name in found:
    if name not in wanted:
      raise UserError(
        f"{place}: '{name}' of shape {found[name][0]} is in the checkpoint but not expected; "
        f"{remedy}"
      )


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by name, `params/blocks/q/w`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def sums(arrays: Mapping[str, Any]) -> dict[str, int]:
  """The sum of the bits of every array, read as whole numbers, modulo 2^32: the same on every mesh."""
  return {name: int(value) for name, value in jax.device_get(_sums(dict(arrays))).items()}


@jax.jit
def _sums(arrays: dict[str, Any]) -> dict[str, Any]:
  def one(x: Any) -> Any:
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return jnp.sum(bits, dtype=jnp.uint32)

  return jax.tree.map(one, arrays)


def reason(error: Exception) -> str:
  """The heart of an error that names many files and functions."""
  text = str(error)
  for sign in (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Permission denied",
  ):
    if sign in text:
      return sign
  for end in (". See full TensorStore details", " [tensorstore_spec"):
    text = text.partition(end)[0]
  return (text.strip().splitlines() or [type(error).__name__])[0][:200]


def _check_sums(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
  """Raises ValueError where a disk has changed an array."""
  if changed := [name for name, value in sums(arrays).items() if value != about["sums"][name]]:
    raise ValueError(f"'{changed[0]}' is not as it was written")


def _existing(path: Path) -> Path:
  return next(p for p in (path, *path.parents) if p.exists())


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> list:
  return [list(leaf.shape), str(leaf.dtype)]


def _data(leaf: Any) -> Any:
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _undata(found: Any, like: Any) -> Any:
  return jax.random.wrap_key_data(found, impl=jax.random.key_impl(like)) if _is_key(like) else found


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None)
  if _is_key(leaf):
    leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
