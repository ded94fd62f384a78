"""One self-contained HTML page for a run.

`write(workdir)` makes report.html from the files of a run directory, and from nothing else.
"""

from __future__ import annotations

from html import escape

from instructjax.errors import UserError
from instructjax.runs.report import page, sections, verdict
from instructjax.runs.report.files import Run, read
from instructjax.system import atomic
from instructjax.system.places import AnyPath

__all__ = ["render", "write"]


def render(run: Run) -> str:
  """Returns the page; sections without data are left out."""
  links = ""
  bodies = []
  for build_section in sections.ALL:
    name, title, html = build_section(run)
    if html:
      links += f'<a href="#{name}">{escape(title)}</a>'
      bodies.append(html)
  header = f"<header>{verdict.head(run)}<nav>{links}</nav></header>"
  body = header + "\n".join(bodies)
  return page.page(f"{run.name} · InstructJAX", body)


def write(workdir: AnyPath) -> AnyPath:
  """Writes report.html into the run directory, whole or not at all, and returns its path.

  Raises:
    UserError: where nothing can be read, or where the page cannot be written.
  """
  text = render(read(workdir))
  target = workdir / "report.html"
  # A broken sample may hold half a character, which UTF-8 cannot spell.
  content = text.encode("utf-8", "replace")
  try:
    atomic.replace(target, content)
  except OSError as error:
    raise UserError(
      f"{target} cannot be written ({error.strerror}); "
      "free some space or correct the permissions of the directory"
    ) from error
  return target
