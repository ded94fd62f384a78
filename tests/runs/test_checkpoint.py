"""Checkpoints come back bit for bit, are whole or absent, and are not taken for another model's."""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import optim, sharding, steps
from instructjax.errors import UserError
from instructjax.runs.checkpoint import Checkpoints, load_params


def state_of(width=4, ema=True):
  params = {
    "a": {"w": jnp.arange(3.0 * width).reshape(3, width), "b": jnp.ones(2, jnp.bfloat16)},
    "c": jnp.float32(2),
  }
  tx = optim.by_subtree(a=optim.adamw(optim.cosine(1e-3, 10), clip=1.0), c=optim.adamw(1e-3))
  state = steps.init_state(
    jax.random.key(7), params, tx, ema={"c": params["c"]} if ema else None, kl_coef=0.2
  )
  grads = jax.tree.map(jnp.ones_like, params)
  return steps.update(state, grads, tx, ema_decay=0.5)


def write(folder, step, state, extra=None, **settings):
  checkpoints = Checkpoints(folder, **settings)
  checkpoints.save(step, state, extra)
  checkpoints.wait()


def raw(tree):
  data = lambda x: (
    jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  )
  return jax.tree.map(data, tree)


def test_everything_round_trips_with_types_and_key(tmp_path):
  state = state_of()
  checkpoints = Checkpoints(tmp_path / "c")
  assert checkpoints.latest() is None
  checkpoints.save(3, state, {"config": {"lr": 1e-5}, "stage": "sft"})
  restored, extra = checkpoints.restore(jax.tree.map(lambda x: x, state_of(ema=True)))
  assert extra == {"config": {"lr": 1e-5}, "stage": "sft"}
  assert restored.key.dtype == state.key.dtype
  assert jax.random.uniform(restored.key) == jax.random.uniform(state.key)
  tiny.assert_trees_equal(raw(restored), raw(state))
  jax.tree.map(
    lambda a, b: None if a.dtype == b.dtype else pytest.fail(f"{a.dtype} {b.dtype}"),
    restored,
    state,
  )


def test_another_key_type_round_trips(tmp_path):
  key = jax.random.key(3, impl="rbg")
  write(tmp_path, 1, {"key": key})
  restored, _ = Checkpoints(tmp_path).restore({"key": jax.random.key(0, impl="rbg")})
  assert (jax.random.key_data(restored["key"]) == jax.random.key_data(key)).all()


def test_last_n_are_kept_and_a_step_is_written_once(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 10):
    checkpoints.save(step, {"x": jnp.float32(step)}, {"n": step})
  checkpoints.save(10, {"x": jnp.float32(-1)}, {"n": -1})
  assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
  assert checkpoints.latest() == 10
  assert checkpoints.extra(2) == {"n": 2}
  assert float(checkpoints.restore({"x": jnp.float32(0)})[0]["x"]) == 10
  assert float(checkpoints.restore({"x": jnp.float32(0)}, step=2)[0]["x"]) == 2


def test_restored_state_does_not_compile_again(tmp_path):
  tx = optim.adamw(optim.cosine(1e-2, 9))
  fresh = lambda: steps.init_state(jax.random.key(0), {"w": jnp.arange(4.0)}, tx)

  def run(state, x):
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), x.shape)
    return steps.update(state, {"w": state.params["w"] * x + noise}, tx), {}

  state = fresh()
  step = steps.compiled(run, state)
  state, _ = step(state, jnp.ones(4))
  write(tmp_path, 1, state)
  restored, _ = Checkpoints(tmp_path).restore(fresh())
  after, _ = step(restored, jnp.ones(4))
  expected, _ = step(state, jnp.ones(4))
  tiny.assert_trees_equal(raw(after), raw(expected))
  assert step._cache_size() == 1


def test_sharded_state_comes_back_on_its_mesh(tmp_path):
  lm = tiny.lm("llama")
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    params = sharding.place(lm.init(jax.random.key(0)), sharding.shardings(lm.table))
    write(tmp_path, 1, {"params": params})
    other = sharding.place(lm.init(jax.random.key(1)), sharding.shardings(lm.table))
    restored = load_params(tmp_path, other)
  jax.tree.map(
    lambda a, b: None if a.sharding == b.sharding else pytest.fail("sharding"), restored, params
  )
  tiny.assert_trees_equal(restored, params)


def test_another_model_is_named_with_both_shapes(tmp_path):
  write(tmp_path, 5, state_of(width=4))
  with pytest.raises(
    UserError,
    match=r"5: 'params/a/w' is float32\[3, 4\] in the checkpoint, float32\[3, 6\] is expec",
  ):
    Checkpoints(tmp_path).restore(state_of(width=6))
  with pytest.raises(
    UserError,
    match=r"'ema/c' of shape \[\] is in the checkpoint but not expected; it belongs to anot",
  ):
    Checkpoints(tmp_path).restore(state_of(ema=False))
  write(tmp_path, 6, state_of(ema=False))
  with pytest.raises(UserError, match=r"'ema/c' of shape \[\] is not in the checkpoint"):
    Checkpoints(tmp_path).restore(state_of())


def test_no_checkpoint_and_a_damaged_one_are_user_errors(tmp_path):
  with pytest.raises(UserError, match="holds no checkpoint"):
    Checkpoints(tmp_path / "none").restore({"x": jnp.float32(0)})
  write(tmp_path, 1, {"x": jnp.arange(8.0)})
  for path in (tmp_path / "1").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(b"")
  with pytest.raises(UserError, match="1: cannot be read"):
    Checkpoints(tmp_path).restore({"x": jnp.arange(8.0)})


@pytest.fixture
def two(tmp_path):
  """A folder with steps 2 and 4 of an array that does not compress, and its shape."""
  like = {"x": jnp.zeros(4000)}
  for step in (2, 4):
    write(tmp_path, step, {"x": jax.random.normal(jax.random.key(step), (4000,))}, {"n": step})
  return tmp_path, like


def biggest(folder):
  return max(
    (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
  )


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 64
  path.write_bytes(bytes(data))


DAMAGES = {
  "a truncated array": lambda step: os.truncate(biggest(step), biggest(step).stat().st_size // 2),
  "a flipped bit": lambda step: flip(biggest(step)),
  "a truncated description": lambda step: os.truncate(step / "about" / "metadata", 20),
  "no description": lambda step: shutil.rmtree(step / "about"),
  "no metadata of the arrays": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
  "no arrays": lambda step: shutil.rmtree(step / "state"),
  "an empty folder": lambda step: (shutil.rmtree(step), step.mkdir()),
  "a folder of something else": lambda step: (
    shutil.rmtree(step),
    step.mkdir(),
    (step / "x.txt").write_text("x"),
  ),
}


# Orbax leaves a coroutine behind where it finds no metadata.
@pytest.mark.filterwarnings(
  "ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_the_step_that_is_still_good(two, damage):
  folder, like = two
  DAMAGES[damage](folder / "4")
  with pytest.raises(UserError) as error:
    Checkpoints(folder).restore(like)
  assert str(error.value).startswith(f"{folder / '4'}: cannot be read (")
  assert str(error.value).endswith(
    "; move this folder away and run the command that wrote it again: it goes on from step 2"
  )
  assert "\n" not in str(error.value)
  (folder / "4").rename(folder / "damaged")
  assert Checkpoints(folder).restore(like)[1] == {"n": 2}
  shutil.rmtree(folder / "2" / "about")
  with pytest.raises(UserError, match=r"2: cannot be read .* no good step is left here"):
    Checkpoints(folder).restore(like)


def test_a_checkpoint_of_another_program_is_no_checkpoint_of_ours(two):
  import orbax.checkpoint as ocp

  folder, like = two
  with ocp.CheckpointManager(folder) as manager:
    manager.save(
      9,
      args=ocp.args.Composite(state=ocp.args.StandardSave(like), about=ocp.args.JsonSave({"a": 1})),
    )
  with pytest.raises(
    UserError, match=r"9: cannot be read \(it was not written by instructjax\).*on from step 4"
  ):
    Checkpoints(folder).restore(like)


def test_what_a_killed_process_left_is_no_step_and_is_swept(two):
  folder, like = two
  shutil.copytree(folder / "4", folder / "6.orbax-checkpoint-tmp")
  (folder / "6.orbax-checkpoint-tmp" / "about" / "metadata").unlink()
  assert Checkpoints(folder).latest() == 4
  write(folder, 6, like)
  assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]


def test_what_is_written_is_the_state_that_was_given_though_it_is_donated_at_once(tmp_path):
  add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = add({"a": jnp.zeros(300_000), "b": jnp.zeros((300, 300)), "c": jnp.float32(0)})
  checkpoints = Checkpoints(tmp_path, keep=9)
  for step in range(1, 5):
    checkpoints.save(step, state)
    for _ in range(20):
      state = add(state)
  for step in range(1, 5):
    restored, _ = checkpoints.restore(state, step)
    jax.tree.map(
      lambda x, at=step: np.testing.assert_array_equal(x, np.full(x.shape, 20 * at - 19)), restored
    )


@pytest.mark.parametrize(
  ("best", "remaining"),
  [("eval/nll", [3, 5, 6]), ("loss", [3, 5, 6]), ("objective/scores", [2, 5, 6]), ("", [5, 6])],
)
def test_the_best_step_is_kept_besides_the_last(tmp_path, best, remaining):
  values = {1: 3.0, 2: 5.0, 3: 1.0, 4: 2.0, 5: float("nan")}
  for first in (1, 4):  # a new process goes on
    checkpoints = Checkpoints(tmp_path, keep=2, best=best)
    for step in range(first, first + 3):
      checkpoints.save(
        step,
        {"x": jnp.float32(step)},
        metrics={best: values[step]} if step in values else {"other": 1.0},
      )
    assert checkpoints.latest() == first + 2
  assert checkpoints.steps() == remaining


def test_a_checkpoint_comes_back_on_another_mesh(tmp_path):
  """8x1x1 -> 1x2x4 -> one device -> 2x2x2, each from the checkpoint that the one before wrote."""
  tx = optim.adamw(1e-3)
  specs = {"w": jax.P("fsdp", "model"), "b": jax.P("model"), "c": jax.P()}

  def state_on(mesh, scale):
    with jax.set_mesh(sharding.make_mesh(*mesh)) if mesh else contextlib.nullcontext():
      params = {
        "w": scale * jnp.arange(128.0).reshape(16, 8),
        "b": scale * jnp.ones(8, jnp.bfloat16),
        "c": jnp.float32(3),
      }
      params = sharding.place(params, specs)
      return steps.init_state(
        jax.random.key(int(scale)), params, tx, ema={"w": params["w"]}, kl_coef=0.1
      )

  state = state_on((8, 1, 1), 1.1)
  for step, mesh in enumerate([(1, 2, 4), None, (2, 2, 2)]):
    write(tmp_path, step, state)
    like = state_on(mesh, 2.0)
    restored, _ = Checkpoints(tmp_path).restore(like)
    tiny.assert_trees_equal(raw(restored), raw(state))
    jax.tree.map(
      lambda a, b: None if a.sharding == b.sharding else pytest.fail(f"{a.sharding}"),
      restored,
      like,
    )
    state = restored


def test_another_type_is_named(tmp_path):
  write(tmp_path, 5, {"x": jnp.zeros(3)})
  with pytest.raises(
    UserError, match=r"5: 'x' is float32\[3\] in the checkpoint, bfloat16\[3\] is expected"
  ):
    Checkpoints(tmp_path).restore({"x": jnp.zeros(3, jnp.bfloat16)})


def test_an_array_that_is_not_finite_is_not_written(tmp_path, mesh):
  """Also where one device alone holds the number."""
  values = np.arange(16, dtype=np.float32)
  in_parts = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
  good = jax.device_put(values, in_parts)
  bad = jax.device_put(np.where(values == 13, np.inf, values), in_parts)
  write(tmp_path / "c", 1, {"x": good, "key": jax.random.key(0)})
  message = "step 2 is not written, because 'x' is not finite; the finite state of step 1 is kept"
  with pytest.raises(UserError, match=message):
    Checkpoints(tmp_path / "c").save(2, {"x": bad, "key": jax.random.key(0)})
  assert Checkpoints(tmp_path / "c").steps() == [1]


def test_what_finish_leaves_is_finite(tmp_path):
  from instructjax.runs import origin

  with pytest.raises(UserError, match="'params/head/b' is not finite; no state was saved before"):
    origin.finish(tmp_path, 3, {"head": {"b": jnp.float32("nan")}}, {}, "reward")
  assert not (tmp_path / "checkpoints").exists()


def test_every_changed_letter_of_the_description_is_noticed(two):
  """The JSON beside the arrays says what the model is: `norm_eps` 1e-05 may become 1e-75."""
  folder, like = two
  write(folder, 6, like, {"model": {"norm_eps": 1e-05, "width": 32, "name": "a"}})
  path = folder / "6" / "about" / "metadata"
  content = path.read_bytes()
  for at in range(0, len(content), len(content) // 60):
    changed = bytearray(content)
    changed[at] = changed[at] ^ 1
    path.write_bytes(bytes(changed))
    with pytest.raises(UserError) as error:
      Checkpoints(folder).extra()
    assert "6: cannot be read (" in str(error.value)
    assert "\n" not in str(error.value)
  path.write_bytes(content)
  assert Checkpoints(folder).extra()["model"]["norm_eps"] == 1e-05


def test_a_description_from_before_there_was_a_sum_is_read(two):
  import json

  folder, like = two
  path = folder / "4" / "about" / "metadata"
  about = json.loads(path.read_text())
  for name in ("format", "sha256"):
    del about[name]
    path.write_text(json.dumps(about))
    if name == "format":  # a sum without a format is no layout of ours
      with pytest.raises(UserError, match="its description is not as it was written"):
        Checkpoints(folder).restore(like)
  assert Checkpoints(folder).restore(like)[1] == {"n": 4}


@pytest.mark.parametrize(
  "error",
  [
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
  ],
)
def test_a_shortage_of_memory_is_no_damage(two, monkeypatch, error):
  import orbax.checkpoint as ocp

  folder, like = two

  def short(self, *args, **kwargs):
    raise error

  monkeypatch.setattr(ocp.CheckpointManager, "restore", short)
  with pytest.raises(UserError, match="4: there is not enough memory to read it") as raised:
    Checkpoints(folder).restore(like)
  assert "it is not damaged: make room" in str(raised.value)
  assert "move" not in str(raised.value)


def test_ctrl_c_in_a_write_outside_the_loop_leaves_it_complete(tmp_path, monkeypatch, capfd):
  """As in the final model of a stage, which `origin.finish` leaves."""
  import orbax.checkpoint as ocp

  wait = ocp.CheckpointManager.wait_until_finished
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, {"x": jnp.arange(4.0)})

  def pressed(self):
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", wait)
    raise KeyboardInterrupt

  monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", pressed)
  with pytest.raises(KeyboardInterrupt):
    checkpoints.wait()
  assert checkpoints._manager is None
  assert [path.name for path in tmp_path.iterdir()] == ["7"]
  restored, _ = Checkpoints(tmp_path).restore({"x": jnp.zeros(4)})
  np.testing.assert_array_equal(restored["x"], np.arange(4.0))
  assert capfd.readouterr().err == "finishing the checkpoint; once more to stop at once\n"


def test_what_comes_late_to_a_closed_loop_is_not_printed(tmp_path, monkeypatch):
  """tensorstore reports each part of a failed write to an event loop that is gone."""
  from types import SimpleNamespace

  printed = []
  monkeypatch.setattr(sys, "unraisablehook", printed.append)
  write(tmp_path, 1, {"x": jnp.arange(4.0)})
  write(tmp_path, 2, {"x": jnp.arange(4.0)})
  late, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
  for error in (late, other):
    sys.unraisablehook(SimpleNamespace(exc_value=error))
  assert [report.exc_value for report in printed] == [other]


FULL = """
import resource, sys
import jax, jax.numpy as jnp
from instructjax.runs.checkpoint import Checkpoints
from instructjax.errors import UserError

checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": jnp.arange(4.0)}, {"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
  checkpoints.save(2, {"x": jax.random.normal(jax.random.key(0), (500_000,))}, {"n": 2})
  checkpoints.wait()
except UserError as error:
  print(error)
"""


def test_a_write_that_fails_leaves_the_last_good_one(tmp_path):
  """The size limit of a process stands for a full disk: the operating system refuses the write half
  way.
  """
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  run = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)],
    capture_output=True,
    text=True,
    env=env,
    check=True,
  )
  assert (
    "the checkpoint of step 2 could not be written (File too large); step 1 is kept. Free some "
    "space" in run.stdout
  )
  assert run.stdout.count("\n") == 1
  assert "Traceback" not in run.stderr
  assert "Event loop" not in run.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["1"]
  restored, extra = Checkpoints(tmp_path).restore({"x": jnp.zeros(4)})
  np.testing.assert_array_equal(restored["x"], np.arange(4.0))
  assert extra == {"n": 1}
