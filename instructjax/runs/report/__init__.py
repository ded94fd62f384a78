"""One self-contained HTML page for a run: `write(workdir)` makes report.html from the files of a
run directory.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from instructjax.errors import UserError
from instructjax.runs.report import page, sections, verdict
from instructjax.runs.report.files import Run, read
from instructjax.system import atomic

__all__ = ["render", "write"]


def render(run: Run) -> str:
  """The page; sections without data are left out."""
  found = [part for make in sections.ALL if (part := make(run))[2]]
  links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in found)
  body = f"<header>{verdict.head(run)}<nav>{links}</nav></header>" + "\n".join(
    html for _, _, html in found
  )
  return page.page(f"{run.name} · InstructJAX", body)


def write(workdir: Path) -> Path:
  """Writes report.html into the run directory, whole or not at all.  Raises UserError where nothing
  can be read.
  """
  text = render(read(workdir))
  target = workdir / "report.html"
  try:
    atomic.replace(target, text.encode("utf-8", "replace"))
  except OSError as error:
    raise UserError(
      f"{target} cannot be written ({error.strerror}); make room or mend the permissions"
    ) from error
  return target
