"""Checkpoints: a pytree of arrays and a JSON object for each step, written by Orbax, the last n kept.

A checkpoint appears whole or not at all.  Its JSON lists the name, shape and type of every leaf, so that one of another
model is told apart before anything is read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from instructjax.errors import UserError
from instructjax.types import PyTree


class Checkpoints:
  """The checkpoints of one folder, which is made by the first save.

    save(step, state, extra)     writes the state and a JSON object; the last `keep` steps stay
    latest()                     the last step, or None where there is none
    extra(step=None)             the JSON object of a step (of the last one)
    restore(state_like, step=None)
                                 (state, extra): the arrays with the shapes, types and shardings of `state_like`,
                                 whose leaves may be arrays or `jax.ShapeDtypeStruct`s

  A step that was saved before is not written again.
  """

  def __init__(self, folder: str | Path, keep: int = 2):
    self.folder = Path(folder).absolute()
    self.keep = keep

  def save(self, step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
    """Raises UserError when it cannot be written (a full disk); the steps saved before are then still there."""
    import orbax.checkpoint as ocp

    arrays = {name: _data(leaf) for name, leaf in flatten(state).items()}
    about = {"leaves": {name: _describe(leaf) for name, leaf in flatten(state).items()}, "extra": extra or {}}
    args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about))
    try:
      with self._manager() as manager:
        if step not in manager.all_steps():
          manager.save(step, args=args, force=True)
    except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as a ValueError
      self._sweep()
      last = self.latest()
      kept = "no step was saved before" if last is None else f"step {last} is kept"
      raise UserError(
        f"{self.folder}: the checkpoint of step {step} could not be written ({reason(error)}); {kept}. Free some "
        f"space ({shutil.disk_usage(_existing(self.folder)).free >> 20} MiB are left) and run the same command again"
      ) from error

  def latest(self) -> int | None:
    """The last complete step."""
    if not self.folder.is_dir():
      return None
    return max((int(path.name) for path in self.folder.iterdir() if path.name.isdigit()), default=None)

  def extra(self, step: int | None = None) -> dict[str, Any]:
    """The JSON object that was saved with a step."""
    return self._about(self._step(step))["extra"]

  def restore(self, state_like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
    """Raises UserError naming the first leaf in which the checkpoint and `state_like` differ."""
    import orbax.checkpoint as ocp

    step = self._step(step)
    about, wanted = self._about(step), flatten(state_like)
    compare(about["leaves"], {name: _describe(leaf) for name, leaf in wanted.items()}, self.folder / str(step))
    like = {name: _abstract(leaf) for name, leaf in wanted.items()}
    with _readable(self.folder / str(step)), self._manager() as manager:
      found = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]
    leaves = [_undata(found[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves), about["extra"]

  def _step(self, step: int | None) -> int:
    found = self.latest() if step is None else step
    if found is None or not (self.folder / str(found)).is_dir():
      raise UserError(f"{self.folder}: holds no checkpoint{'' if step is None else f' of step {step}'}; run it first")
    return found

  def _about(self, step: int) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    with _readable(self.folder / str(step)), self._manager() as manager:
      return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]

  @contextlib.contextmanager
  def _manager(self) -> Iterator[Any]:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, enable_async_checkpointing=False)
    log, level = logging.getLogger("absl"), logging.getLogger("absl").level
    log.setLevel(logging.CRITICAL)  # the exceptions say it all
    try:
      with ocp.CheckpointManager(self.folder, options=options) as manager:
        yield manager
    finally:
      log.setLevel(level)

  def _sweep(self) -> None:
    """Removes what an interrupted save left behind."""
    for path in self.folder.glob("*") if self.folder.is_dir() else ():
      if not path.name.isdigit():
        shutil.rmtree(path, ignore_errors=True)


def load_params(folder: str | Path, like: PyTree) -> PyTree:
  """The parameters of a finished stage (`origin.finish`), with the shapes and shardings of `like`."""
  return Checkpoints(folder).restore({"params": like})[0]["params"]


def compare(found: dict[str, list], wanted: dict[str, list], place: Path) -> None:
  """Raises UserError naming the first leaf that is missing, left over, or of another shape or type."""
  remedy = "it belongs to another model or configuration: use its own settings, or another directory"
  for name, (shape, dtype) in wanted.items():
    if name not in found:
      raise UserError(f"{place}: '{name}' of shape {shape} is not in the checkpoint; {remedy}")
    if found[name] != [shape, dtype]:
      raise UserError(f"{place}: '{name}' is {found[name][1]}{found[name][0]} in the checkpoint, {dtype}{shape} "
                      f"is expected; {remedy}")  # fmt: skip
  for name in found:
    if name not in wanted:
      raise UserError(f"{place}: '{name}' of shape {found[name][0]} is in the checkpoint but not expected; {remedy}")


def flatten(tree: PyTree) -> dict[str, Any]:
  """Leaves by name, `params/blocks/q/w`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def reason(error: Exception) -> str:
  """The heart of an error that names many files and functions."""
  text = str(error)
  for sign in ("No space left on device", "Disk quota exceeded", "File too large", "Permission denied"):
    if sign in text:
      return sign
  return (text.strip().splitlines() or [type(error).__name__])[0][:200]


@contextlib.contextmanager
def _readable(place: Path) -> Iterator[None]:
  """A damaged checkpoint is the user's to mend."""
  try:
    yield
  except (OSError, ValueError, KeyError, RuntimeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"{place}: cannot be read ({reason(error)}); delete it to go on from the step before") from error


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
