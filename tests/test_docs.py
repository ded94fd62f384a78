"""The documentation is true where a machine can tell: its links lead somewhere, its files are
there, its commands are read.
"""

import re
import shlex
from pathlib import Path

import pytest

from instructjax import settings
from instructjax.commands import cli
from instructjax.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")]
PAGES.sort()
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
REQUIRED = {
  "eval": ["--models=base=", "--suite=nlp"],
  "bench": ["--stage=sft"],
}  # of commands that go on with ...


def page(path: Path) -> str:
  return str(path.relative_to(ROOT))


def prose(text: str) -> str:
  return BLOCK.sub("", text)


def anchors(path: Path) -> set[str]:
  """Of the headings of a page, as GitHub names them."""
  headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[str]:
  """The `instructjax` commands of the code blocks, with or without a prompt, and those with options
  in the rows of a table.
  """
  lines = [
    line.strip().removeprefix("$ ")
    for block in BLOCK.findall(text)
    for line in block.replace("\\\n", "").splitlines()
  ]
  rows = [line for line in prose(text).splitlines() if line.startswith("|")]
  named = re.findall(r"`(instructjax [^`]* --[^`]+)`", "\n".join(rows))
  return [line for line in lines if line.startswith("instructjax ")] + named


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path):
  for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
    if "://" in target:
      continue
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    assert found.exists(), f"{target}: no such file"
    assert not anchor or anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_named_files_are_there(path):
  folders = "docs|colab|configs|instructjax|experiments|scripts|tests"
  named = re.findall(rf"(?<![\w/.])((?:{folders})/[\w./-]+\.\w+)", path.read_text())
  assert not [file for file in named if not (ROOT / file).exists()]


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_are_read_by_the_command_line(path, capsys):
  """Options, configurations, presets, and the fields that are set; `...` stands for what was said
  before.
  """
  for line in commands(path.read_text()):
    words = shlex.split(line, comments=True)[1:]
    given = [word for word in words if word != "..."]
    if words[1:2] == ["..."]:
      given[1:1] = REQUIRED[given[0]]
    try:
      args, rest = cli.parser(cli.all_commands(), given).parse_known_args(given)
    except SystemExit as stop:
      if stop.code == 0:  # --help and --version print something and stop
        continue
      pytest.fail(f"{line}\n{capsys.readouterr().err}")
    fields = settings.assignments(rest)
    assert "config" in args or not fields, line
    if getattr(args, "config", None):
      settings.override(settings.load(args.config), fields)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_prose_names_commands_that_are_there(path):
  for name in set(re.findall(r"`instructjax ([a-z_]+)", prose(path.read_text()))):
    with pytest.raises(SystemExit) as stop:
      cli.main([name, "--help"])
    assert stop.value.code == 0, name


def test_these_tests_can_fail():
  text = "`instructjax a --b`\n```bash\n$ instructjax sft \\\n  --config=x  # y\nls\n```\n"
  first, second = commands(text + "| `instructjax bench --stage=ppo` | 1 |\n")
  assert shlex.split(first, comments=True) == ["instructjax", "sft", "--config=x"]
  assert second == "instructjax bench --stage=ppo"
  assert anchors(ROOT / "README.md") >= {
    "the-losses",
    "every-stage",
    "your-model-your-reward-your-labelers",
  }
  with pytest.raises(UserError):
    settings.assignments(["--modle=x"])
