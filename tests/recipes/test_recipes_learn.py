"""Every recipe as its command runs it, shorter: more of the held-out prompts are answered right."""

import best_of_n
import dpo
import grpo
import online_dpo
import pytest
import rloo

COUNT = {dpo: "--batches=20"}  # the others count iterations


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [dpo, online_dpo, best_of_n, grpo, rloo])
def test_a_recipe_learns(recipe, capsys):
  gain = recipe.main(["--seed=0", "--warm=200", COUNT.get(recipe, "--iterations=20")])
  assert gain.n == 1000
  assert gain.value > 0, capsys.readouterr().out
