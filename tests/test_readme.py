"""The README is true: its code runs, and its two commands are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_losses_run():
  (code,) = blocks("python")
  assert (
    len(
      [
        line
        for line in code.splitlines()
        if line.strip() and not line.startswith(("import", "from"))
      ]
    )
    <= 10
  )
  names = {}
  exec(code, names)
  assert 0 < float(names["ranking_loss"]) < 1
  assert abs(float(names["policy_loss"])) < 10
  assert names["advantage"].shape == (1, 4) and float(names["advantage"][0, 3]) == 0


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_the_two_commands_are_targets(target):
  assert f"make {target}" in README
  assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
