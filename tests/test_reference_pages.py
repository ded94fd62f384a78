"""The pages that are made from the code are those of this code."""

import importlib.util
from pathlib import Path

from instructjax.runs.report.ppo_metrics import METRICS

PATH = Path(__file__).parent.parent / "scripts" / "reference_pages.py"
SPEC = importlib.util.spec_from_file_location("reference_pages", PATH)
assert SPEC is not None and SPEC.loader is not None
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


def test_the_pages_are_up_to_date(capsys):
  assert script.main(["--check"]) == 0, f"{capsys.readouterr().out}run {script.COMMAND}"


def test_the_page_of_metrics_keeps_its_prose_and_replaces_its_table():
  page = f"before\n{script.BEGIN}\nan old table\n{script.END}\nafter\n"
  made = script.metrics_page(page)
  assert made.startswith("before\n") and made.endswith("\nafter\n")
  assert "an old table" not in made
  assert made == script.metrics_page(made)
  for metric in METRICS:
    assert made.count(f"| `{metric.name}` |") == 1


def test_the_page_of_settings_has_every_field_of_a_stage():
  page = script.settings_page()
  ppo = page.partition("## ppo\n")[2].partition("\n## ")[0]
  assert "| `ppo.clip` | `0.2` |" in ppo
  assert "above 0 and below 1" in ppo
  assert "| `reward_model` |" in ppo
