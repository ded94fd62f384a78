"""How Sphinx builds these pages: `make docs`.

The pages are Markdown, and so are the docstrings, nearly: names stand between single backticks, and
an equation is indented by four. Signatures are printed as they stand in the code, where shapes are.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import instructjax

project = "InstructJAX"
author = "the InstructJAX authors"
project_copyright = f"2026 {author}"
release = instructjax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"InstructJAX {release}"
myst_heading_anchors = 4  # links lead to headings as they do on GitHub

default_role = "py:obj"
add_module_names = False
python_maximum_signature_line_length = 60
autodoc_default_options = {
  "members": True,
  "member-order": "bysource",
  "exclude-members": "__init__, __new__, count, index",
}
autodoc_typehints = "signature"
napoleon_use_rtype = False

PAGES = Path(__file__).resolve().parent


class Name(str):
  """Text that prints without quotes."""

  def __repr__(self) -> str:
    return str(self)


def as_written(app: Any, what: str, name: str, value: Any, *rest: Any) -> tuple[str, str] | None:
  """Returns the signature of a function or class, with annotations as they stand in the code."""
  if what not in ("function", "method", "class"):
    return None
  # What a module has imported is asked about as well, and left out afterwards.
  if not getattr(value, "__module__", "").startswith("instructjax"):
    return None
  # Annotations are strings, because every module defers their evaluation.
  signature = inspect.signature(value)
  parameters = [shown(parameter) for parameter in signature.parameters.values()]
  result = signature.return_annotation if what != "class" else ""
  return str(inspect.Signature(parameters)), "" if result is inspect.Signature.empty else result


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
  """Returns a parameter that prints in few words, and its annotation without quotes."""
  annotation, default = parameter.annotation, parameter.default
  # In a NamedTuple Python wraps the text of an annotation.
  text = getattr(annotation, "__forward_arg__", annotation)
  if isinstance(text, str):
    parameter = parameter.replace(annotation=Name(text))
  if inspect.isfunction(default):
    name = default.__name__
    parameter = parameter.replace(default=Name("..." if name == "<lambda>" else name))
  elif dataclasses.is_dataclass(default):
    parameter = parameter.replace(default=Name(f"{type(default).__name__}()"))
  return parameter


def add_fields(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
  """Lists the fields of settings with the sentence that the command line has for each."""
  if what != "class" or not dataclasses.is_dataclass(value):
    return
  for field in dataclasses.fields(value):
    sentence = field.metadata.get("sentence")
    if sentence:
      lines.append(f"- ``{field.name}``: {sentence}")


def equations(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
  """Turns the blocks of a docstring that are indented by four into literal blocks."""
  if lines and lines[0].startswith("Alias for field number"):
    lines.clear()  # what Python says of every field of a NamedTuple
  result: list[str] = []
  inside = False
  for number, line in enumerate(lines):
    is_indented = line.startswith("    ")
    begins = is_indented and not inside and number > 0 and not lines[number - 1].strip()
    if begins:
      result += ["::", ""]
    if line.strip():
      inside = is_indented and (inside or begins)
    result.append(line)
  lines[:] = result


def link(app: Any, env: Any, node: Any, contents: Any) -> Any:
  """Returns the link of a name that leaves out the package, such as `losses.nll`."""
  target = node.get("reftarget", "")
  if node.get("refdomain") != "py" or target.startswith("instructjax."):
    return None
  domain = env.get_domain("py")
  page = env.docname
  return domain.resolve_xref(env, page, app.builder, "obj", f"instructjax.{target}", node, contents)


def keep_inside(app: Any, docname: str, source: list[str]) -> None:
  """Turns a link to a file of the repository that is no page here into its text and its path."""
  folder = (PAGES / docname).parent
  text, *rest = source[0].split("](../")
  for piece in rest:
    path, _, after = piece.partition(")")
    file = (folder / ".." / path.partition("#")[0]).resolve()
    is_page = file.is_relative_to(PAGES)
    text += f"](../{path}){after}" if is_page else f"] (`{path}`){after}"
  source[0] = text


def add_contents(app: Any, docname: str, source: list[str]) -> None:
  """Makes the contents of the site from the lists of the first page, which GitHub shows as well.

  A page that no list names comes last.
  """
  if docname != "index":
    return
  sections = source[0].split("\n## ")[1:]
  listed: list[str] = []
  contents: list[str] = []
  for section in sections:
    caption = section.partition("\n")[0]
    pages = [piece.partition(".md)")[0] for piece in section.split("](")[1:] if ".md)" in piece]
    listed += pages
    contents.append(toctree(caption, pages))
  everything = {str(page.relative_to(PAGES).with_suffix("")) for page in PAGES.rglob("*.md")}
  rest = {page for page in everything - {"index", *listed} if not page.startswith("reference/")}
  if rest:
    contents.append(toctree("More", sorted(rest)))
  source[0] = "\n".join([*source, *contents])


def toctree(caption: str, pages: list[str]) -> str:
  """Returns a part of the contents, which stands beside every page."""
  lines = [
    "```{toctree}",
    f":caption: {caption}",
    ":hidden:",
    ":maxdepth: 1",
    "",
    *pages,
    "```",
    "",
  ]
  return "\n".join(lines)


def setup(app: Any) -> None:
  """Connects the functions of this file."""
  app.connect("source-read", keep_inside)
  app.connect("source-read", add_contents)
  app.connect("autodoc-process-signature", as_written)
  # Before napoleon, which would take an equation for a part of a section.
  app.connect("autodoc-process-docstring", equations, priority=400)
  app.connect("autodoc-process-docstring", add_fields, priority=600)
  app.connect("missing-reference", link)
