"""Writes the pages that are made from the code: `python scripts/reference_pages.py`.

docs/ppo_metrics.md    the table of PPO's metrics, between its marks
docs/settings_reference.md    every field of every stage

With `--check` nothing is written, and the exit code is 1 where a page is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from instructjax import settings
from instructjax.runs.report import ppo_metrics
from instructjax.settings import fields

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python scripts/reference_pages.py"
BEGIN = "<!-- made by scripts/reference_pages.py: begin -->"
END = "<!-- end -->"


def metrics_table() -> str:
  """Returns the rows of docs/ppo_metrics.md, a line a metric."""
  lines = ["| metric | what it is | healthy | when it is not |", "|---|---|---|---|"]
  for metric in ppo_metrics.METRICS:
    remedies = [f"{alarm.when}: {alarm.advice}" for alarm in metric.alarms]
    meaning = metric.meaning.replace("|", "\\|")
    healthy = metric.healthy.replace("|", "\\|")
    lines.append(f"| `{metric.name}` | {meaning} | {healthy} | {' '.join(remedies)} |")
  return "\n".join(lines)


def metrics_page(page: str) -> str:
  """Returns docs/ppo_metrics.md with a new table between its marks."""
  before, _, rest = page.partition(BEGIN)
  _, _, after = rest.partition(END)
  return f"{before}{BEGIN}\n\n{metrics_table()}\n\n{END}{after}"


def settings_page() -> str:
  """Returns docs/settings_reference.md: a table for each stage, with the defaults of its preset."""
  parts = [
    "# Settings reference",
    f"Every field of every stage, with the value of the first preset. `{COMMAND}` makes this page "
    "from the code, and a test fails where it is old. `instructjax config STAGE:PRESET` prints the "
    "values of any preset, and [settings.md](settings.md) explains how to set them.",
  ]
  for stage in settings.PRESETS:
    lines = [f"## {stage}", "", "| field | value | meaning | what it takes |", "|---|---|---|---|"]
    for field in fields.walk(settings.preset(stage)):
      cells = (
        f"`{field.path}`",
        f"`{fields.show(field.value)}`" if fields.show(field.value).strip() else "",
        field.sentence,
        fields.expectation(field.kind, field.limits),
      )
      row = " | ".join(cell.replace("|", "\\|") for cell in cells)
      lines.append(f"| {row} |")
    parts.append("\n".join(lines))
  return "\n\n".join(parts) + "\n"


def pages() -> dict[Path, str]:
  """Returns the content that each page should have."""
  metrics = ROOT / "docs" / "ppo_metrics.md"
  return {
    metrics: metrics_page(metrics.read_text()),
    ROOT / "docs" / "settings_reference.md": settings_page(),
  }


def main(arguments: list[str]) -> int:
  """Writes the pages, or says which of them are old."""
  old = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
  for path in old:
    if "--check" not in arguments:
      path.write_text(pages()[path])
    print(f"{path.relative_to(ROOT)} {'is old' if '--check' in arguments else 'is written'}")
  return int(bool(old) and "--check" in arguments)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
