"""The page for research is true: its examples run as they stand."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np

PAGE = (Path(__file__).parent.parent / "docs" / "research.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_slots_run():
  _, whole, others = BLOCKS
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
