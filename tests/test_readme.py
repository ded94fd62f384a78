"""The README is true: its code runs, its commands and files are there, its numbers are those of a recorded run."""

import re
import shlex
from pathlib import Path

import pytest

from instructjax import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_losses_run():
  (code,) = blocks("python")
  assert len([line for line in code.splitlines() if line.strip() and not line.startswith(("import", "from"))]) <= 10
  names = {}
  exec(code, names)
  assert 0 < float(names["ranking_loss"]) < 1
  assert abs(float(names["policy_loss"])) < 10
  assert names["advantage"].shape == (1, 4) and float(names["advantage"][0, 3]) == 0


def test_the_commands_parse():
  lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("instructjax ")]
  assert len(lines) >= 7
  for line in lines:
    cli.parser().parse_known_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("target", ["quickstart", "test"])
def test_the_two_commands_are_targets(target):
  assert f"make {target}" in README
  assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_named_files_are_there():
  named = re.findall(r"`((?:docs|colab|configs|instructjax|experiments|scripts)/[\w./-]+)`", README)
  named += [path for path in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in path]
  assert len(named) >= 3
  assert not [path for path in named if not (ROOT / path).exists()]
