"""The tiny world: its prompts, its right answers, its reward, and what it prints."""

import jax
import jax.numpy as jnp
import numpy as np
import world
from sorted_digits import rows_of


def test_held_out_prompts_are_not_trained_on():
  held_out = {tuple(row) for row in np.asarray(world.numbers()[: world.HELD_OUT])}
  assert len(held_out) == 1000
  digits = world.training_prompts(jax.random.key(0), 5000).tokens[:, :4] - world.ZERO
  assert digits.min() == 0 and digits.max() == 9
  assert not held_out & {tuple(row) for row in np.asarray(digits)}


def test_the_reward_is_1_for_the_right_digits_in_order_and_an_end():
  rows = rows_of("3141=1134.", "3141=1143.", "3141=113411", "3141=11344.", "9020=0029.")
  np.testing.assert_array_equal(world.reward(rows), [1, 0, 0, 0, 1])
  np.testing.assert_array_equal(world.well_formed(rows), [True, True, False, False, True])
  assert world.written(rows)[3:] == ["3141=11344.", "9020=0029."]


def test_demonstrations_mark_the_response_and_its_end():
  digits = jnp.array([[3, 1, 4, 1]])
  right = world.right_demonstrations(world.prompts_of(digits))
  rows = world.demonstrations(rows_of("3141=1134."))
  for demonstrations in (right, rows):
    np.testing.assert_array_equal(demonstrations.tokens, rows_of("3141=1134.").tokens)
    np.testing.assert_array_equal(demonstrations.valid, [[True] * 10 + [False]])
    np.testing.assert_array_equal(demonstrations.mask, [[False] * 5 + [True] * 5 + [False]])


def test_text_counts_up_or_down():
  tokens = np.asarray(world.text(jax.random.key(0), 200).tokens) - world.ZERO
  steps = np.diff(tokens, axis=1) % 10
  assert (steps == steps[:, :1]).all()
  assert set(steps[:, 0]) == {1, 2, 3, 4, 6, 7, 8, 9}


def test_the_report_says_what_was_gained(capsys):
  gain = world.report("a method", 3, np.array([0.0, 0, 1, 0] * 10), np.array([0.0, 1, 1, 1] * 10))
  assert gain.value == 0.5
  line = capsys.readouterr().out
  assert line.startswith("a method: before 0.250 [") and "after 0.750 [" in line
  assert line.endswith("; n 40, seed 3\n")
