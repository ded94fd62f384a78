"""The table of the compiler's options, and what a user changes of it."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

from instructjax import compiler, steps
from instructjax.errors import UserError
from instructjax.settings.subjects import MeshSettings
from instructjax.stages import running

FLAG = "xla_gpu_enable_latency_hiding_scheduler"


def on(platform, monkeypatch):
  monkeypatch.setattr(compiler.sharding, "platform", lambda: platform)


def test_each_platform_has_its_own_options(monkeypatch):
  on("tpu", monkeypatch)
  assert compiler.options_for() == dict(compiler.OPTIONS["tpu"])
  on("gpu", monkeypatch)
  assert compiler.options_for() == {FLAG: True}
  for plain in ("cpu", "", "rocm"):
    on(plain, monkeypatch)
    assert compiler.options_for() == {}


def test_a_user_adds_replaces_and_leaves_out(monkeypatch):
  on("gpu", monkeypatch)
  assert compiler.options_for("xla_a=65536, xla_b=true") == {
    FLAG: True,
    "xla_a": 65536,
    "xla_b": True,
  }
  assert compiler.options_for(f"{FLAG}=false") == {FLAG: False}
  assert compiler.options_for(f"{FLAG}=none") == {}


@pytest.mark.parametrize("text", ["xla_a", "=true", "xla_a=", "xla_a=1,b"])
def test_what_is_no_option_is_named(text):
  with pytest.raises(UserError, match=r"config\.mesh\.compiler=.* is no NAME=VALUE"):
    compiler.options_for(text)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("xla_no_such_option=true", "for cpu does not take xla_no_such_option=true .*No such"),
    (f"{FLAG}=perhaps", f"does not take {FLAG}=perhaps"),
    (f"{FLAG}=none", f"{FLAG}=none leaves nothing out on cpu"),
  ],
)
def test_an_option_that_the_compiler_does_not_take_ends_a_run_at_its_start(text, message):
  with pytest.raises(UserError, match=message), running.devices(MeshSettings(compiler=text)):
    raise AssertionError("the run has begun")


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 2}], ids=str)
def test_the_options_reach_the_compiler(mesh, monkeypatch):
  """Of a step and of a part of one; without any, the call is that of a plain `jax.jit`."""
  settings = MeshSettings(**mesh, compiler="xla_embed_ir_in_executable=true")
  with running.devices(settings):
    state = steps.new_state(jax.random.key(0), {"w": jnp.zeros(2)}, optax.sgd(0.1))
    # It keeps what `jax.jit` is called with.
    monkeypatch.setattr(compiler.jax, "jit", partial)
    expected = {"xla_embed_ir_in_executable": True}
    assert compiler.jit(jnp.sin).keywords["compiler_options"] is None
    assert compiler.jit(jnp.sin, settings.compiler).keywords["compiler_options"] == expected
    step = steps.compiled(jnp.sin, state, settings.compiler)
    assert step.keywords["compiler_options"] == expected


def test_the_options_of_a_gpu_are_known_by_name():
  """XLA knows the names of its own options on every platform; those of a TPU only libtpu knows."""
  jax.jit(jnp.sin, compiler_options=dict(compiler.OPTIONS["gpu"])).lower(1.0).compile()
