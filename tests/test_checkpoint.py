"""Checkpoints come back bit for bit, are whole or absent, and are not mistaken for another model's."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from instructjax import optim, sharding, steps
from instructjax.checkpoint import Checkpoints, load_params
from instructjax.errors import UserError


def state_of(width=4, ema=True):
  params = {"a": {"w": jnp.arange(3.0 * width).reshape(3, width), "b": jnp.ones(2, jnp.bfloat16)}, "c": jnp.float32(2)}
  tx = optim.by_subtree(a=optim.adamw(optim.cosine(1e-3, 10), clip=1.0), c=optim.adamw(1e-3))
  state = steps.init_state(jax.random.key(7), params, tx, ema={"c": params["c"]} if ema else None, kl_coef=0.2)
  grads = jax.tree.map(jnp.ones_like, params)
  return steps.update(state, grads, tx, ema_decay=0.5)


def raw(tree):
  data = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
  return jax.tree.map(data, tree)


def test_everything_round_trips_with_types_and_key(tmp_path):
  state = state_of()
  checkpoints = Checkpoints(tmp_path / "c")
  assert checkpoints.latest() is None
  checkpoints.save(3, state, {"config": {"lr": 1e-5}, "stage": "sft"})
  found, extra = checkpoints.restore(jax.tree.map(lambda x: x, state_of(ema=True)))
  assert extra == {"config": {"lr": 1e-5}, "stage": "sft"}
  assert found.key.dtype == state.key.dtype
  assert jax.random.uniform(found.key) == jax.random.uniform(state.key)
  tiny.assert_trees_equal(raw(found), raw(state))
  jax.tree.map(lambda a, b: None if a.dtype == b.dtype else pytest.fail(f"{a.dtype} {b.dtype}"), found, state)


def test_another_key_type_round_trips(tmp_path):
  key = jax.random.key(3, impl="rbg")
  Checkpoints(tmp_path).save(1, {"key": key})
  found, _ = Checkpoints(tmp_path).restore({"key": jax.random.key(0, impl="rbg")})
  assert (jax.random.key_data(found["key"]) == jax.random.key_data(key)).all()


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
  Checkpoints(tmp_path).save(1, state)
  found, _ = Checkpoints(tmp_path).restore(fresh())
  after, _ = step(found, jnp.ones(4))
  expected, _ = step(state, jnp.ones(4))
  tiny.assert_trees_equal(raw(after), raw(expected))
  assert step._cache_size() == 1


def test_sharded_state_comes_back_on_its_mesh(tmp_path):
  lm = tiny.lm("llama")
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    params = sharding.place(lm.init(jax.random.key(0)), sharding.shardings(lm.table))
    Checkpoints(tmp_path).save(1, {"params": params})
    other = sharding.place(lm.init(jax.random.key(1)), sharding.shardings(lm.table))
    found = load_params(tmp_path, other)
  jax.tree.map(lambda a, b: None if a.sharding == b.sharding else pytest.fail("sharding"), found, params)
  tiny.assert_trees_equal(found, params)


def test_another_model_is_named_with_both_shapes(tmp_path):
  Checkpoints(tmp_path).save(5, state_of(width=4))
  with pytest.raises(
    UserError, match=r"5: 'params/a/w' is float32\[3, 4\] in the checkpoint, float32\[3, 6\] is expec"
  ):
    Checkpoints(tmp_path).restore(state_of(width=6))
  with pytest.raises(
    UserError, match=r"'ema/c' of shape \[\] is in the checkpoint but not expected; it belongs to anot"
  ):
    Checkpoints(tmp_path).restore(state_of(ema=False))
  Checkpoints(tmp_path).save(6, state_of(ema=False))
  with pytest.raises(UserError, match=r"'ema/c' of shape \[\] is not in the checkpoint"):
    Checkpoints(tmp_path).restore(state_of())


def test_no_checkpoint_and_a_damaged_one_are_user_errors(tmp_path):
  with pytest.raises(UserError, match="holds no checkpoint"):
    Checkpoints(tmp_path / "none").restore({"x": jnp.float32(0)})
  Checkpoints(tmp_path).save(1, {"x": jnp.arange(8.0)})
  for path in (tmp_path / "1").rglob("*"):
    if path.is_file() and path.parent.name == "d":
      path.write_bytes(b"")
  with pytest.raises(UserError, match="1: cannot be read"):
    Checkpoints(tmp_path).restore({"x": jnp.arange(8.0)})


FULL = """
import resource, sys
import jax, jax.numpy as jnp
from instructjax.checkpoint import Checkpoints
from instructjax.errors import UserError

checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"x": jnp.arange(4.0)}, {"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
  checkpoints.save(2, {"x": jax.random.normal(jax.random.key(0), (500_000,))}, {"n": 2})
except UserError as error:
  print(error)
"""


def test_a_write_that_fails_leaves_the_last_good_one(tmp_path):
  """The size limit of a process stands for a full disk: the operating system refuses the write half way."""
  env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
  run = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)], capture_output=True, text=True, env=env, check=True
  )
  assert "the checkpoint of step 2 could not be written (File too large); step 1 is kept. Free some space" in run.stdout
  assert run.stdout.count("\n") == 1
  assert "Traceback" not in run.stderr
  assert [path.name for path in tmp_path.iterdir()] == ["1"]
  found, extra = Checkpoints(tmp_path).restore({"x": jnp.zeros(4)})
  np.testing.assert_array_equal(found["x"], np.arange(4.0))
  assert extra == {"n": 1}
