"""The README is true: its code runs, and its two commands are there."""

import ast
import re
from pathlib import Path

import pytest

from instructjax import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
MOST_STATEMENTS = 10  # of the first example, imports apart: a newcomer reads it at a glance


def blocks(language: str, page: str = README) -> list[str]:
  """The code blocks of one language of a page, in their order."""
  return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def test_the_losses_run():
  code = blocks("python")[0]
  # Statements are counted and not lines, so that comments and the layout are free.
  imports = ast.Import | ast.ImportFrom
  statements = [node for node in ast.parse(code).body if not isinstance(node, imports)]
  assert len(statements) <= MOST_STATEMENTS
  names = {}
  exec(code, names)
  assert 0 < float(names["ranking_loss"]) < 1
  assert abs(float(names["policy_loss"])) < 10
  assert names["advantage"].shape == (1, 4) and float(names["advantage"][0, 3]) == 0


def test_the_configuration_file_loads(tmp_path):
  file = tmp_path / "my_ppo.py"
  file.write_text(blocks("python", SETTINGS)[0])
  config = settings.load(str(file))
  assert (config.stage, config.model.shape) == ("ppo", "6B")
  assert (config.ppo.clip, config.kl.coef, config.policy_optimizer.lr) == (0.1, 0.05, 1e-5)


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_the_two_commands_are_targets(target):
  assert f"make {target}" in README
  assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
