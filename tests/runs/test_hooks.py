"""A user's function that looks on: what stops a run, what goes on, and what is an error."""

import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructjax import steps
from instructjax.errors import UserError
from instructjax.runs import hooks

STATE = steps.new_state(jax.random.key(0), {}, optax.identity())


def answered(answer):
  """What a hook says whose function returns this."""
  return hooks.hook(lambda step, metrics, state: answer, name="mine").call(1, {}, STATE)


@pytest.mark.parametrize("answer", [None, False, np.bool_(False), jnp.bool_(False)])
def test_the_run_goes_on(answer):
  assert answered(answer) == ""


@pytest.mark.parametrize("answer", [True, np.bool_(True), jnp.float32(2) > 1])
def test_true_stops_the_run(answer):
  assert answered(answer) == "it returned True"


def test_a_text_stops_the_run_and_says_why():
  assert answered(" KL is 12 ") == "KL is 12"


@pytest.mark.parametrize("answer", [1, 0, "", [True], {"stop": True}, jnp.ones(2) > 0])
def test_anything_else_is_an_error(answer):
  message = "mine: returned .*; return True or a text to stop the run, and None or False to go on"
  with pytest.raises(UserError, match=message):
    answered(answer)


def test_the_function_may_change_its_metrics():
  metrics = {"loss": 1.0}
  hook = hooks.hook(lambda step, metrics, state: metrics.clear())
  hook.call(1, metrics, STATE)
  assert metrics == {"loss": 1.0}


def test_a_function_is_found_by_file_and_name(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "def stop(step, metrics, state):\n  return f'{step} {metrics} {state.iteration}'\n"
  )
  hook = hooks.open_hook(f"{path}:stop", every=5)
  assert (hook.name, hook.every) == (f"{path}:stop", 5)
  assert hook.call(3, {"a": 1.0}, STATE) == "3 {'a': 1.0} 0"
  assert hook.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_function_that_was_typed_in_has_no_file():
  typed: dict = {}
  exec("def stop(step, metrics, state): pass", typed)
  assert hooks.hook(typed["stop"]).sha256 == ""


def test_what_it_raises_is_named_with_its_line(tmp_path):
  path = tmp_path / "broken_hook.py"
  path.write_text("def stop(step, metrics, state):\n  return metrics['objective/lk'] > 10\n")
  hook = hooks.open_hook(f"{path}:stop")
  with pytest.raises(UserError, match=re.escape(f"KeyError: 'objective/lk' at {path}:2")):
    hook.call(1, {}, STATE)


def test_a_function_that_is_not_there_is_named(tmp_path):
  path = tmp_path / "other_hook.py"
  path.write_text("def stop(step, metrics, state): pass\n")
  with pytest.raises(UserError, match="has no function 'halt'; it has stop"):
    hooks.open_hook(f"{path}:halt")
