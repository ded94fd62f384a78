"""The page for research is true: its examples run as they stand."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PATH = Path(__file__).parent.parent / "docs" / "research.md"


def blocks(page: str) -> list[str]:
  return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


BLOCKS = blocks(PATH.read_text())


def test_the_slots_run():
  _, whole, others, *_ = BLOCKS
  names = {}
  exec(whole, names)
  assert names["scores"].shape == (8,)
  assert float(names["metrics"]["loss/kl"]) < 1e-6
  assert int(names["state"].step) == 1
  exec(others, names)
  reward = jnp.asarray([[1.0, 0], [0, 3], [2, 0], [0, 0]])
  mask = jnp.ones((4, 2), bool)
  advantage, target = names["mine"].advantages(reward, None, mask)
  np.testing.assert_array_equal(advantage, [[0, 0], [1, 1], [0, 0], [0, 0]])
  assert target is None
  weight = jnp.full((4, 2), 1 / 8)
  logp = jnp.full((4, 2), -2.0)
  for name in ("rloo", "dual", "higher", "curious"):
    config = names[name]
    advantage, _ = config.advantages(reward, None, mask)
    assert advantage.shape == (4, 2)
    if config.policy_loss:
      assert np.isfinite(config.policy_loss(logp, logp, advantage, weight))
  assert float(names["mine"].policy_loss(logp, logp, advantage, weight)) == 0
  assert float(names["curious"].entropy_loss(-logp, weight)) == np.float32(-0.02)


def test_the_loss_runs():
  names = {"mask": jnp.ones((2, 3), bool)}
  names |= {name: jnp.zeros((2, 3)) for name in ("logp", "old_logp", "advantage")}
  exec(BLOCKS[0], names)
  assert float(names["loss"]) == 0


def test_the_loop_resumes(tmp_path):
  names = {}
  exec(BLOCKS[3], names)
  names["train"](2, tmp_path / "half")
  resumed = names["train"](4, tmp_path / "half")
  whole = names["train"](4, tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


@pytest.mark.slow
def test_a_mesh_changes_no_metric_of_ppo():
  names = {}
  exec(BLOCKS[4], names)
  alone = names["iterations"](2, data=1)
  meshed = names["iterations"](2, data=2, fsdp=2, model=2)
  for name, value in alone.items():
    np.testing.assert_allclose(meshed[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_ensemble_is_the_score():
  page = PATH.with_name("rewards.md").read_text()
  [program] = [block for block in blocks(page) if "rewards.minimum" in block]
  names = {}
  exec(program, names)
  members = [
    names["reward"].score(
      names["lm"], member, names["reward"].closed(names["rows"], (1,)), names["rows"].valid
    )
    for member in names["members"]
  ]
  np.testing.assert_allclose(
    names["metrics"]["objective/scores"], np.mean(np.min(members, axis=0)), rtol=1e-5
  )
