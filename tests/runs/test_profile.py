"""--profile=START:STEPS: what is read, and a trace that names its steps."""

import re

import jax.numpy as jnp
import optax
import pytest

from instructjax import steps
from instructjax.errors import UserError
from instructjax.runs import profile, writers
from instructjax.runs.loop import fit

TX = optax.sgd(0.1)


def test_steps_are_read(tmp_path):
  read = profile.read("100:5", tmp_path)
  assert (read.first, read.last, read.folder) == (100, 104, tmp_path)


@pytest.mark.parametrize(
  "text",
  ["", "5", "5:", ":5", "0:5", "5:0", "-1:5", "a:b", "1:2:3", "1.5:2", "²:3", "9" * 20 + ":1"],
)
def test_anything_else_is_one_line(text, tmp_path):
  with pytest.raises(UserError, match=re.escape(f"--profile={text[:40]}: write START:STEPS")):
    profile.read(text, tmp_path)


def run(tmp_path, traced, state=None):
  """Six steps, of which some are traced."""

  def step(state, x):
    state = steps.update(state, {"w": state.params["w"] - x}, TX)
    return state.replace(iteration=state.iteration + 1), {"loss": jnp.float32(1)}

  if state is None:
    import jax

    state = steps.init_state(jax.random.key(0), {"w": jnp.float32(1)}, TX)
  with writers.open_run(tmp_path / "run", {}, seed=1) as writer:
    return fit(
      steps.compiled(step, state),
      state,
      jnp.float32,
      steps=6,
      stage="mystage",
      writer=writer,
      profile=traced,
    )


def test_a_trace_names_its_steps(tmp_path, capsys):
  run(tmp_path, profile.Profile(3, 2, tmp_path / "profile"))
  (path,) = (tmp_path / "profile").rglob("*.xplane.pb")  # which XProf and TensorBoard open
  content = path.read_bytes()
  assert b"mystage" in content
  assert b"step_num" in content
  assert f"mystage: the trace is in {tmp_path / 'profile'}" in capsys.readouterr().err


def test_steps_that_are_not_there_are_one_line(tmp_path):
  message = "--profile=5:3: mystage has 6 steps; choose steps among them"
  with pytest.raises(UserError, match=message):
    run(tmp_path, profile.Profile(5, 3, tmp_path / "profile"))


def test_a_run_that_goes_on_after_these_steps_says_so(tmp_path, capsys):
  """A launcher gives the same command again, and must not fail."""
  trace = profile.tracing(profile.Profile(3, 2, tmp_path / "profile"), "sft", 3, 6)
  assert not any(trace.begins(step) for step in range(4, 7))
  trace.stop()  # nothing runs
  assert "--profile=3:2: sft goes on after step 3, so nothing" in capsys.readouterr().err
