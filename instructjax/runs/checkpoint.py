"""Checkpoints: a pytree of arrays and a JSON object for each step, written by Orbax.

They are written while the training goes on. A checkpoint appears whole or not at all, and nothing
is deleted before its successor is complete. Its JSON lists the name, shape and type of every leaf,
so that a checkpoint of another model is recognised before anything is read. It also holds the sum
of the bits of every leaf, and a sum of itself, which reveal what a disk has changed: Orbax reads a
flipped byte of an array, or of the JSON, without an error.

An array that holds NaN or an infinity is never written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from instructjax.errors import UserError
from instructjax.system import jsons, places
from instructjax.system.places import AnyPath
from instructjax.types import PyTree

# Orbax is imported where it is used, because its import is slow and few commands need it.

# Orbax leaves this file in a step of a bucket when all of the step is there, because folders cannot
# be renamed in a bucket.
COMPLETE = "commit_success.txt"

# A metric with one of these words in its name is better lower, any other is better higher.
LOWER = ("loss", "nll")

# A leaf in the JSON of a checkpoint: its shape as a list, and its type.
Description = list

# The parts of that JSON; a checkpoint with others was not written here, or was changed since.
PARTS_OF_ABOUT = {"leaves", "sums", "extra"}
# What the parts have besides: the layout and the sum of all the rest. The first checkpoints of
# version 0.2 had neither. No change of a letter makes those of one that has both.
FORMAT = 2
PARTS_OF_FORMAT = {*PARTS_OF_ABOUT, "format", "sha256"}


class Checkpoints:
  """The checkpoints of one folder, which is made by the first save.

    save(step, state, extra, metrics)
                                 starts to write the state and a JSON object; the last `keep`
                                 steps stay, and the one with the best metric of the name `best`
                                 (LOWER says which way), if one is named
    wait()                       returns when the write is complete; every other method waits by
                                 itself
    latest()                     the last complete step, or None where there is none
    steps()                      all complete steps, in order
    extra(step=None)             the JSON object of a step (of the last one)
    restore(state_like, step=None)
                                 (state, extra): the arrays with the shapes, types and shardings
                                 of `state_like`, whose leaves may be arrays or
                                 `jax.ShapeDtypeStruct`s; the mesh may be another one
    leaves()                     the names of the leaves of the last state with their shapes
    part(name, like)             one subtree of the last state

  `save` returns when the state is copied, so that it may be donated. A step that was saved
  before is not written again. With several processes all of them call every method.
  """

  def __init__(self, folder: str | AnyPath, keep: int = 2, best: str = ""):
    self.folder = places.absolute(folder)
    self.keep = keep
    self.best = best
    self._manager: Any = None  # Orbax's manager, from the first save until `wait`
    self._step = 0  # the step that the manager writes, for the message of a failure

  def save(
    self,
    step: int,
    state: PyTree,
    extra: dict[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to write a step, once the write before it is complete.

    Raises:
      UserError: when an array is not finite, and when this write or the last one fails, as on a
        full disk. The steps before are still there.
    """
    import orbax.checkpoint as ocp

    state_leaves = flatten(state)
    arrays = {name: _to_array(leaf) for name, leaf in state_leaves.items()}
    broken_leaf = first_not_finite(arrays)
    if broken_leaf:
      raise UserError(
        f"{self.folder}: step {step} is not written, because '{broken_leaf}' is not finite; "
        f"{self.remains()}"
      )
    about = signed(
      {
        "leaves": _describe_all(state_leaves),
        "sums": sums(arrays),
        "extra": extra or {},
      }
    )
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(arrays),
      about=ocp.args.JsonSave(about),
    )
    best_value = (metrics or {}).get(self.best, math.nan)
    with self._writing():
      if self._manager is None:
        self._manager = self._open_manager()
        self._step = step
      # A failure up to here belongs to the step before, and is reported under its number.
      self._manager.wait_until_finished()
      self._step = step
      if step not in self._manager.all_steps():
        # Orbax compares steps by this value. One that is not measured, or is NaN, takes no part.
        measured = {self.best: float(best_value)} if math.isfinite(best_value) else None
        # `force`: the caller chooses the steps, not an interval of Orbax.
        self._manager.save(step, args=args, metrics=measured, force=True)

  def wait(self) -> None:
    """Returns when the last checkpoint is complete.

    Raises:
      UserError: when it could not be written.
    """
    if self._manager is not None:
      with self._writing():
        self._manager.wait_until_finished()
        self._close()

  def latest(self) -> int | None:
    """The last complete step, or None."""
    return max(self.steps(), default=None)

  def remains(self) -> str:
    """What is left after a failure, in words. Whatever was written is finite."""
    last = self.latest()
    if last is None:
      return "no state was saved before"
    return f"the finite state of step {last} is kept"

  def steps(self) -> list[int]:
    """All complete steps, in order."""
    self.wait()
    with places.reaching(self.folder):
      if not self.folder.is_dir():
        return []
      return sorted(int(path.name) for path in self.folder.iterdir() if _is_complete(path))

  def extra(self, step: int | None = None) -> dict[str, Any]:
    """The JSON object that was saved with a step, or with the last one.

    Raises:
      UserError: where the step is missing or damaged.
    """
    return self._about(self._existing_step(step))["extra"]

  def restore(self, state_like: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
    """Reads a step, or the last one, in the shapes, types and shardings of `state_like`.

    Raises:
      UserError: where the step is missing or damaged, and for the first leaf in which the
        checkpoint and `state_like` differ.
    """
    import orbax.checkpoint as ocp

    step = self._existing_step(step)
    about = self._about(step)
    expected = flatten(state_like)
    # Another model is refused before any array is read.
    compare(about["leaves"], _describe_all(expected), self.folder / str(step))
    abstract_arrays = {name: _abstract(leaf) for name, leaf in expected.items()}
    args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_arrays))
    with self._reading(step):
      with self._reader() as manager:
        arrays = manager.restore(step, args=args)["state"]
      _check_sums(arrays, about)  # within `_reading`, which reports it as damage
    leaves = [_from_array(arrays[name], leaf) for name, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(state_like), leaves), about["extra"]

  def part(self, name: str, like: PyTree) -> PyTree:
    """Reads the subtree `name` ("params/policy") of the last state alone.

    It has the shapes, types and shardings of `like`. No other leaf is read from the disk.

    Raises:
      UserError: as `restore` does.
    """
    import orbax.checkpoint as ocp

    step = self._existing_step(None)
    about = self._about(step)
    folder = self.folder / str(step)
    prefix = f"{name}/"
    expected = {prefix + leaf_name: leaf for leaf_name, leaf in flatten(like).items()}
    saved = {
      leaf_name: description
      for leaf_name, description in about["leaves"].items()
      if leaf_name.startswith(prefix)
    }
    compare(saved, _describe_all(expected), folder)

    # Orbax's manager restores whole trees only, so the handler below it is asked directly.
    abstract_arrays = {leaf_name: _abstract(leaf) for leaf_name, leaf in expected.items()}
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract_arrays)
    args = ocp.args.PyTreeRestore(
      item=abstract_arrays,
      restore_args=restore_args,
      partial_restore=True,
    )
    with self._reading(step), quiet():
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(folder / "state", args=args)
      _check_sums(arrays, about)
    leaves = [arrays[leaf_name] for leaf_name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

  def leaves(self) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the last state, by its name."""
    descriptions = self._about(self._existing_step(None))["leaves"]
    return {name: tuple(shape) for name, (shape, _) in descriptions.items()}

  # --- reading ---

  def _existing_step(self, step: int | None) -> int:
    """The given step, or the last one for None.

    Raises:
      UserError: where there is no such step.
    """
    steps = self.steps()
    number = max(steps, default=None) if step is None else step
    if number is None or number not in steps:
      which_step = "" if step is None else f" of step {step}"
      raise UserError(f"{self.folder}: holds no checkpoint{which_step}; run it first")
    return number

  def _about(self, step: int) -> dict[str, Any]:
    """The JSON of a step.

    Raises:
      UserError: where it is damaged, or was not written here.
    """
    with self._reading(step):
      return self._read_about(step)

  def _read_about(self, step: int) -> dict[str, Any]:
    """Reads the JSON of a step.

    Raises:
      ValueError: where another program wrote the checkpoint, or the JSON has changed since.
      Exception: of any type where it is damaged.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(about=ocp.args.JsonRestore())
    with self._reader() as manager:
      about = manager.restore(step, args=args)["about"]
    is_ours = isinstance(about, dict) and all(
      isinstance(about.get(part), dict) for part in PARTS_OF_ABOUT
    )
    if not is_ours:
      raise ValueError("it was not written by instructjax")
    check_signature(about)
    return about

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Turns an error of the body into a UserError that names the last step that is still good.

    A damaged checkpoint is for the user to move away: nothing is deleted here.
    """
    try:
      yield
    except Exception as error:  # for truncated files Orbax raises a bare Exception
      if isinstance(error, UserError):
        raise
      if problem := shortage(error):
        raise UserError(
          f"{self.folder / str(step)}: there is not enough memory to read it ({problem}); it is "
          "not damaged: make room, or use more devices, and run the same command again"
        ) from error
      good_step = self._good_step_before(step)
      if good_step is None:
        outlook = "no good step is left here"
      else:
        outlook = f"it goes on from step {good_step}"
      raise UserError(
        f"{self.folder / str(step)}: cannot be read ({reason(error)}); move this folder away and "
        f"run the command that wrote it again: {outlook}"
      ) from error

  def _good_step_before(self, step: int) -> int | None:
    """The last step before `step` whose JSON can be read."""
    for candidate in reversed(self.steps()):
      if candidate < step and self._is_good(candidate):
        return candidate
    return None

  def _is_good(self, step: int) -> bool:
    try:
      return bool(self._about(step))
    except UserError:
      return False

  @contextlib.contextmanager
  def _reader(self) -> Iterator[Any]:
    """A manager of Orbax that changes nothing in the folder."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(read_only=True)
    with quiet(), ocp.CheckpointManager(self.folder, options=options) as manager:
      yield manager

  # --- writing ---

  def _open_manager(self) -> Any:
    """A manager of Orbax that writes steps and deletes those that need not stay."""
    import orbax.checkpoint as ocp

    policies = ocp.checkpoint_managers
    _pass_over_late_callbacks()

    def metric_of(metrics: Mapping[str, float]) -> float:
      return metrics[self.best]

    preserved: list[Any] = [policies.LatestN(self.keep)]
    if self.best:
      is_lower_better = any(word in self.best for word in LOWER)
      best_step = policies.BestN(
        get_metric_fn=metric_of,
        reverse=is_lower_better,
        n=1,
        keep_checkpoints_without_metrics=False,
      )
      preserved.append(best_step)
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(preserved),
      best_fn=metric_of if self.best else None,
      cleanup_tmp_directories=True,  # which a process that was killed left behind
    )
    with quiet():
      return ocp.CheckpointManager(self.folder, options=options)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns a failed write into a UserError that says what is kept and how much room is left."""
    try:
      with quiet():
        yield
    except KeyboardInterrupt:
      self._finish_interrupted()
      raise
    except self._failures() as error:
      # Closing the manager may fail for the same reason, and what it has begun to write is removed.
      with contextlib.suppress(*self._failures()):
        self._close()
      self._sweep()
      last = self.latest()
      remains = "no step was saved before" if last is None else f"step {last} is kept"
      if problem := shortage(error):
        raise UserError(
          f"{self.folder}: there was not enough memory to write the checkpoint of step "
          f"{self._step} ({problem}); {remains}. Make room in memory and run the same "
          "command again"
        ) from error
      raise UserError(
        f"{self.folder}: the checkpoint of step {self._step} could not be written "
        f"({reason(error)}); {remains}. {self._remedy()} and run the same command again"
      ) from error

  def _failures(self) -> tuple[type[Exception], ...]:
    """The types of error that a failed write is reported with."""
    if not isinstance(self.folder, Path):
      return (Exception,)  # the errors of the clients of a bucket have no type in common
    # Tensorstore, below Orbax, reports a full disk as a ValueError.
    return (OSError, ValueError, RuntimeError, MemoryError)

  def _remedy(self) -> str:
    """What a user can do about a place that takes no checkpoint."""
    if not isinstance(self.folder, Path):
      return "Check your rights in the bucket and the network"
    free_mib = shutil.disk_usage(_nearest_existing(self.folder)).free >> 20
    return f"Free some space ({free_mib} MiB are left)"

  def _finish_interrupted(self) -> None:
    """Completes a write that Ctrl-C interrupts; a second Ctrl-C leaves it incomplete."""
    manager = self._manager
    if manager is None:
      return
    print("finishing the checkpoint; once more to stop at once", file=sys.stderr, flush=True)
    # What fails now would hide that the user has stopped the command. A checkpoint that is not
    # complete is swept away by the next one.
    with contextlib.suppress(Exception), quiet():
      manager.wait_until_finished()
      self._close()

  def _close(self) -> None:
    manager = self._manager
    self._manager = None  # also where closing fails
    if manager is not None:
      manager.close()

  def _sweep(self) -> None:
    """Removes what an interrupted save left behind."""
    # The user hears why the write failed, and that may also be why nothing can be removed.
    with contextlib.suppress(Exception):
      for path in list(self.folder.iterdir()):
        if not _is_complete(path):
          places.remove(path)


def _is_complete(path: AnyPath) -> bool:
  """Returns whether a path in a folder of checkpoints is a step that is there as a whole."""
  # While Orbax writes a step on a disk, its folder has a longer name.
  if not path.name.isdigit():
    return False
  return isinstance(path, Path) or (path / COMPLETE).is_file()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences the log of Orbax, because its exceptions already say everything."""
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


def _pass_over_late_callbacks() -> None:
  """Keeps Python from printing what tensorstore reports to an event loop that Orbax has closed.

  After a write that failed there are hundreds of such reports, each with a traceback, beside the
  message that says what has happened. No code can catch them: Python only prints them.
  """
  hook_before = sys.unraisablehook
  if getattr(hook_before, "passes_over_late_callbacks", False):
    return

  def hook(report: Any) -> None:
    error = report.exc_value
    is_late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not is_late:
      hook_before(report)

  vars(hook)["passes_over_late_callbacks"] = True
  sys.unraisablehook = hook


def signed(about: Mapping[str, Any]) -> dict[str, Any]:
  """The JSON of a checkpoint with the sum of all its letters, as it will be read back."""
  # A tuple comes back as a list, and the key of a mapping as a text.
  plain = json.loads(jsons.text({**about, "format": FORMAT}))
  return plain | {"sha256": _digest(plain)}


def check_signature(about: Mapping[str, Any]) -> None:
  """Checks that the JSON of a checkpoint is as `signed` made it.

  Raises:
    ValueError: where it is not. Checkpoints from before there was a sum have none to check.
  """
  if about.keys() == PARTS_OF_ABOUT:
    return
  plain = {name: part for name, part in about.items() if name != "sha256"}
  if about.keys() != PARTS_OF_FORMAT or about["sha256"] != _digest(plain):
    raise ValueError("its description is not as it was written")


def _digest(plain: Mapping[str, Any]) -> str:
  text = jsons.text(plain, ascii_only=True, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def load_params(folder: str | AnyPath, like: PyTree) -> PyTree:
  """Reads the parameters that `origin.finish` left, in the shapes and shardings of `like`."""
  state, _ = Checkpoints(folder).restore({"params": like})
  return state["params"]


def compare(
  saved: Mapping[str, Description],
  expected: Mapping[str, Description],
  place: AnyPath,
) -> None:
  """Checks that a checkpoint has just the leaves that are expected.

  Raises:
    UserError: for the first leaf that is missing, left over, or of another shape or type.
  """
  remedy = (
    "it belongs to another model or configuration: use its own settings, or another directory"
  )
  for name, (shape, dtype) in expected.items():
    if name not in saved:
      raise UserError(f"{place}: '{name}' of shape {shape} is not in the checkpoint; {remedy}")
    saved_shape, saved_dtype = saved[name]
    if (saved_shape, saved_dtype) != (shape, dtype):
      raise UserError(
        f"{place}: '{name}' is {saved_dtype}{saved_shape} in the checkpoint, "
        f"{dtype}{shape} is expected; {remedy}"
      )
  for name, (saved_shape, _) in saved.items():
    if name not in expected:
      raise UserError(
        f"{place}: '{name}' of shape {saved_shape} is in the checkpoint but not expected; {remedy}"
      )


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves of a tree by their names, for example `params/blocks/q/w`."""
  leaves = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    leaves[jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
  return leaves


def sums(arrays: Mapping[str, Any]) -> dict[str, int]:
  """The sum of the bits of every array, read as whole numbers, modulo 2^32.

  It is the same on every mesh, because whole numbers may be added in any order.
  """
  totals = jax.device_get(_bit_sums(dict(arrays)))
  return {name: int(total) for name, total in totals.items()}


@jax.jit
def _bit_sums(arrays: dict[str, Any]) -> dict[str, Any]:
  # One program for all arrays, which compiles once for each tree. Sums wrap around in uint32.
  def bit_sum(array: Any) -> Any:
    if array.dtype == bool:
      bits = array  # has no whole number of its size
    else:
      bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    return jnp.sum(bits, dtype=jnp.uint32)

  return jax.tree.map(bit_sum, arrays)


def first_not_finite(tree: PyTree) -> str:
  """The name of the first leaf that holds NaN or an infinity; "" where all are finite.

  With several processes all of them must call it; all get the same answer.
  """
  arrays = {name: _to_array(leaf) for name, leaf in flatten(tree).items()}
  are_finite = jax.device_get(_are_finite(arrays))
  return next((name for name in arrays if not are_finite[name]), "")


@jax.jit
def _are_finite(arrays: dict[str, Any]) -> dict[str, Any]:
  # One program for all arrays, whose results are one number each, whole on every device.
  return jax.tree.map(lambda array: jnp.all(jnp.isfinite(array)), arrays)


def _check_sums(arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
  """Raises ValueError for the first array that a disk has changed."""
  for name, total in sums(arrays).items():
    if total != about["sums"][name]:
      raise ValueError(f"'{name}' is not as it was written")


# Causes that a user can act on; errors of tensorstore wrap them in a page of text.
CAUSES = (
  "No space left on device",
  "Disk quota exceeded",
  "File too large",
  "Permission denied",
)


# How a shortage of memory is called by tensorstore, XLA and the operating system.
SHORTAGES = (
  "RESOURCE_EXHAUSTED",
  "Out of memory",
  "out of memory",
  "Cannot allocate memory",
  "bad_alloc",
  "can't start new thread",
)


def shortage(error: BaseException) -> str:
  """What an error, or one from which it comes, calls a shortage of memory; "" where it is none."""
  cause: BaseException | None = error
  while cause is not None:
    if isinstance(cause, MemoryError):
      return "MemoryError"
    for name in SHORTAGES:
      if name in str(cause):
        return name
    cause = cause.__cause__ or cause.__context__
  return ""


def reason(error: Exception) -> str:
  """The heart of an error that names many files and functions, in at most 200 characters."""
  text = str(error)
  for cause in CAUSES:
    if cause in text:
      return cause
  for end in (". See full TensorStore details", " [tensorstore_spec"):
    text = text.partition(end)[0]
  lines = text.strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


def _nearest_existing(path: Path) -> Path:
  """The path, or the nearest folder above it that exists."""
  candidates = (path, *path.parents)
  return next(candidate for candidate in candidates if candidate.exists())


# Orbax stores plain arrays, so a key of JAX is saved as the whole numbers that it consists of.


def _is_key(leaf: Any) -> bool:
  return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_array(leaf: Any) -> Any:
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _from_array(array: Any, like: Any) -> Any:
  if not _is_key(like):
    return array
  return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))


def _describe(leaf: Any) -> Description:
  return [list(leaf.shape), str(leaf.dtype)]


def _describe_all(leaves: Mapping[str, Any]) -> dict[str, Description]:
  return {name: _describe(leaf) for name, leaf in leaves.items()}


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """The shape, type and sharding in which a leaf is to be read; those of its data for a key."""
  sharding = getattr(leaf, "sharding", None)
  if _is_key(leaf):
    key = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    leaf = jax.eval_shape(jax.random.key_data, key)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
