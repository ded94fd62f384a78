"""Jinja for chat templates of others: what `transformers` gives them, with bounds.

Jinja's sandbox keeps a template away from Python. It does not keep it from running for ever, or
from making a text that fills the memory. Here a rendering counts its steps (rounds of loops, calls
of macros, parts of values) and its characters, and ends where there are more than any chat needs.
The counts are put into the parsed template, so that no loop and no macro is without them.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes

# These stand around what is inside {% generation %}. They are noncharacters: no text holds them.
BEGIN = "\ufdd0"
END = "\ufdd1"
STEPS = 200_000  # of a rendering, which takes about a second
PARTS_OF_A_STEP = 20  # parts of a value that are counted in the time of a step
# The characters of a value, of all that is written, and of a template. The longest context that is
# published, of ten million tokens, is as many.
LARGEST = 50_000_000
# The largest number that is handed to a function: "a".ljust(10**12) is one step.
LARGEST_ARGUMENT = 1_000_000
# Widths and precisions in a format, as in "%99999d" and "{:99999}", and those that are arguments.
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")
WIDE_BRACES = re.compile(r"\{[^{}]*(?:\d{5}|\{)")
# What an expression in a template may raise while it is compiled or rendered. MemoryError: Python
# refuses a number of digits so. SyntaxError: loops that are nested deeper than Python's.
ERRORS = (
  jinja2.TemplateError,
  TypeError,
  ValueError,
  LookupError,
  ArithmeticError,
  AttributeError,
  RuntimeError,
  MemoryError,
  SyntaxError,
)


class TooMuchError(jinja2.TemplateError):
  """A template goes on for longer, or writes more, than any chat needs."""


class Bounds(jinja2.ext.Extension):
  """Counts the steps and the characters of the rendering that is under way in a thread."""

  def __init__(self, environment: jinja2.Environment):
    super().__init__(environment)
    self.counts = threading.local()
    self.begin()

  def begin(self) -> None:
    """Begins a rendering."""
    self.counts.steps = 0
    self.counts.written = 0

  def step(self, characters: int = 0, steps: int = 1) -> None:
    """Counts a round of a loop or a call of a macro, whose own text has so many characters."""
    # Another thread than the one that compiled has no counts yet.
    self.counts.steps = getattr(self.counts, "steps", 0) + steps
    if self.counts.steps > STEPS:
      raise TooMuchError(f"it takes more than {STEPS:,} steps")
    self._write(characters)

  def written(self, value: Any) -> Any:
    """Counts what an expression writes, and returns it."""
    self._write(self.size(value))
    return value

  def _write(self, characters: int) -> None:
    self.counts.written = getattr(self.counts, "written", 0) + characters
    if self.counts.written > LARGEST:
      raise TooMuchError(f"it writes more than {LARGEST:,} characters")

  def bounded(self, value: Any) -> Any:
    """Returns a value that is not too large."""
    self.size(value)
    return value

  def joined(self, *parts: Any) -> str:
    """Returns the texts of `a ~ b`, which Jinja would join before anyone could look."""
    self.size(parts)
    return "".join(str(part) for part in parts)

  def size(self, value: Any) -> int:
    """Returns how many characters a value has, with all its parts.

    Raises:
      TooMuchError: where it is too large.
    """
    total = 0
    parts = 0
    waiting = [value]
    while waiting:
      part = waiting.pop()
      parts += 1
      if isinstance(part, str | bytes):
        total += len(part)
      elif isinstance(part, int):
        total += part.bit_length() // 3  # digits, nearly
      elif isinstance(part, Mapping):
        waiting += [*part.keys(), *part.values()]
      elif isinstance(part, list | tuple | set | frozenset):
        waiting += part
      total += 1
      # A list may hold the same list many times over.
      if total > LARGEST or parts > STEPS:
        raise TooMuchError(f"a value has more than {LARGEST:,} characters or {STEPS:,} parts")
    self.step(steps=parts // PARTS_OF_A_STEP)
    return total

  def check_arguments(self, arguments: Iterable[Any]) -> None:
    """Checks what is handed to a function or a filter."""
    for value in arguments:
      self.size(value)
      if isinstance(value, int | float) and not abs(value) <= LARGEST_ARGUMENT:
        raise TooMuchError(f"a function gets a number above {LARGEST_ARGUMENT:,}")


class Counting(jinja2.visitor.NodeTransformer):
  """Puts the counts of `Bounds` into a parsed template."""

  def __init__(self, bounds: Bounds):
    self.bounds = bounds

  def get_visitor(self, node: nodes.Node) -> Callable[..., Any] | None:
    """Returns what changes a node; the name is Jinja's."""
    changes: dict[type, Callable[..., Any]] = {
      nodes.For: self._count,
      nodes.Macro: self._count,
      nodes.CallBlock: self._count,
      nodes.Assign: self._bound,
      nodes.Concat: self._join,
    }
    return changes.get(type(node))

  def _count(self, node: Any) -> Any:
    self.generic_visit(node)
    characters = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    count = self._call("step", [nodes.Const(characters)], node)
    node.body.insert(0, nodes.ExprStmt(count).set_lineno(node.lineno))
    return node

  def _bound(self, node: nodes.Assign) -> nodes.Assign:
    self.generic_visit(node)
    node.node = self._call("bounded", [node.node], node)
    return node

  def _join(self, node: nodes.Concat) -> nodes.Call:
    self.generic_visit(node)
    return self._call("joined", node.nodes, node)

  def _call(self, method: str, arguments: list[Any], node: nodes.Node) -> nodes.Call:
    call = self.bounds.call_method(method, arguments, lineno=node.lineno)
    call.set_lineno(node.lineno, override=True)
    return call


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
  """Jinja's sandbox with bounds on what an operator, a call or a filter makes."""

  intercepted_binops = frozenset({"+", "*", "**", "%"})

  def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
    """Computes left OPERATOR right, where the result is not too large."""
    bounds = self.bounds
    sizes = bounds.size(left), bounds.size(right)
    if operator in ("*", "**") and isinstance(right, int) and isinstance(left, int):
      factor = max(abs(right), 1) if operator == "**" else 1
      bounds.check_arguments([sizes[0] * factor])
    elif operator == "*":
      count = next((part for part in (left, right) if isinstance(part, int)), 1)
      if max(sizes) * max(count, 1) > LARGEST:
        raise TooMuchError(f"a value has more than {LARGEST:,} characters")
    elif operator == "%" and isinstance(left, str) and WIDE_PERCENT.search(left):
      raise TooMuchError("a format is wider than any text")
    return super().call_binop(context, operator, left, right)

  def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function, where neither the arguments nor the result are too large."""
    bounds = self.bounds
    # Our own counts are called in this way too, and check for themselves.
    if getattr(function, "__self__", None) is bounds:
      return super().call(context, function, *args, **kwargs)
    bounds.step()
    # Jinja adds what it needs for itself, by names with an underscore.
    named = [value for name, value in kwargs.items() if not name.startswith("_")]
    bounds.check_arguments([*args, *named])
    method = getattr(function, "__wrapped__", function)
    owner = getattr(method, "__self__", None)
    if isinstance(owner, str):
      self._check_method(owner, getattr(method, "__name__", ""), args)
    return bounds.bounded(super().call(context, function, *args, **kwargs))

  def _check_method(self, text: str, name: str, args: tuple[Any, ...]) -> None:
    """Checks the methods of a text that make more of little."""
    if name in ("format", "format_map") and WIDE_BRACES.search(text):
      raise TooMuchError("a format is wider than any text")
    if name == "replace" and len(args) > 1:
      self.check_replacement(text, args[0], args[1])
    if name == "join" and args and isinstance(args[0], str | list | tuple):
      self.check_product(len(text), len(args[0]))
    if name == "expandtabs" and args and isinstance(args[0], int):
      self.check_product(text.count("\t"), args[0])

  def check_replacement(self, text: str, old: Any, new: Any) -> None:
    """Checks that a text does not grow too large by a replacement."""
    if isinstance(old, str) and isinstance(new, str):
      self.check_product(text.count(old), len(new))

  def check_product(self, count: int, size: int) -> None:
    """Checks that `count` parts of a size are not too large together."""
    if count * size > LARGEST:
      raise TooMuchError(f"a value has more than {LARGEST:,} characters")

  @property
  def bounds(self) -> Bounds:
    """The counts of this environment."""
    extension = self.extensions[Bounds.identifier]
    assert isinstance(extension, Bounds)
    return extension


class Generation(jinja2.ext.Extension):
  """The block `{% generation %}`, which puts marks around what the model writes."""

  def __init__(self, environment: jinja2.Environment):
    super().__init__(environment)
    self.tags = {"generation"}

  def parse(self, parser: Any) -> nodes.Node:
    """Parses the block; the name is Jinja's."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    call = self.call_method("mark")
    return nodes.CallBlock(call, [], [], body).set_lineno(line)

  def mark(self, caller: Callable[[], str]) -> str:
    return BEGIN + caller() + END


def compiled(text: str) -> jinja2.Template:
  """Compiles a template, with its counts.

  Raises:
    TooMuchError: where it is too long.
    Exception: one of ERRORS, where it is no template.
  """
  if len(text) > LARGEST_ARGUMENT:
    raise TooMuchError(f"it has {len(text):,} characters, at most {LARGEST_ARGUMENT:,} are read")
  environment = _environment()
  bounds = environment.bounds
  tree = Counting(bounds).visit(environment.parse(text))
  tree.set_environment(environment)
  return environment.from_string(tree)


def rendered(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
  """Returns the text of a template.

  Raises:
    Exception: one of ERRORS, where it cannot be rendered.
  """
  environment = template.environment
  assert isinstance(environment, Environment)
  environment.bounds.begin()
  parts = []
  size = 0
  for part in template.generate(variables):
    size += len(part)
    if size > LARGEST:
      raise TooMuchError(f"it writes more than {LARGEST:,} characters")
    parts.append(part)
  text = "".join(parts)
  text.encode()  # half a character is a UnicodeEncodeError, which is a ValueError
  return text


def _environment() -> Environment:
  """Returns what `transformers` gives a template: a sandbox without Python, and a few functions."""
  # These two options decide which line ends of a template reach the text.
  environment = Environment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Bounds, Generation, jinja2.ext.loopcontrols],
  )
  bounds = environment.bounds
  environment.finalize = bounds.written

  # Jinja's own `tojson` escapes HTML, which no model was trained on.
  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=sort_keys,
    )

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def strftime_now(form):
    return datetime.datetime.now().strftime(form)

  environment.filters["tojson"] = tojson
  for name, function in list(environment.filters.items()):
    environment.filters[name] = _bounded_filter(environment, name, function)
  functions: dict[str, Any] = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
  }
  environment.globals.update(functions)
  # It makes any number of words, and no chat has them.
  del environment.globals["lipsum"]
  return environment


def _bounded_filter(
  environment: Environment, name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
  """Returns a filter that checks what it gets and what it makes."""
  bounds = environment.bounds

  # The copied attributes tell Jinja which filters want the environment as their first argument.
  @functools.wraps(function)
  def run(*args: Any, **kwargs: Any) -> Any:
    values = [value for value in args if not isinstance(value, UNCOUNTED)]
    bounds.step()
    bounds.check_arguments([*values, *kwargs.values()])
    texts = [value for value in values if isinstance(value, str)]
    if name == "format" and texts and WIDE_PERCENT.search(texts[0]):
      raise TooMuchError("a format is wider than any text")
    if name == "replace" and len(texts) > 2:
      environment.check_replacement(*texts[:3])
    if name == "join" and len(texts) > 0 and isinstance(values[0], str | list | tuple):
      environment.check_product(len(values[0]), len(texts[-1]))
    if name in ("indent", "wordwrap") and texts:
      widths = [value for value in [*values, *kwargs.values()] if isinstance(value, int)]
      lines = texts[0].count("\n") + 1
      environment.check_product(lines, max([1, *widths, *map(len, texts[1:])]))
    return bounds.bounded(function(*args, **kwargs))

  return run


# What Jinja hands to a filter beside the template's own values.
UNCOUNTED = (jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext)
