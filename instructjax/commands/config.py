"""`instructjax config ppo:6b`: every field of a configuration with its value and its sentence."""

from __future__ import annotations

import argparse
import textwrap

from instructjax.commands.options import Fields
from instructjax.system import jsons

WIDTH = 100  # columns of the output
SENTENCE = 40  # columns of them for the sentences, at least


def arguments(command: argparse.ArgumentParser) -> None:
  """The options of `instructjax config`."""
  command.add_argument(
    "config",
    metavar="NAME[:PRESET]",
    help="sft:1.3b, ppo:6b, eval ..., or a file with get_config()",
  )
  command.add_argument("--json", action="store_true", help="print the values as one JSON object")


def run(args: argparse.Namespace, fields: Fields) -> None:
  """Prints the fields; those of the command line are set first."""
  from instructjax import settings

  config = settings.override(settings.load(args.config), fields)
  if args.json:
    print(jsons.text(settings.to_dict(config), indent=2))
    return
  print(describe(config))


def describe(config: object) -> str:
  """The fields of settings in three columns: name, value, sentence with its range or choices."""
  from instructjax.settings import fields

  rows = [(f"config.{field.path}", quoted(field.value), field) for field in fields.walk(config)]
  name_width = max(len(name) for name, _, _ in rows)
  widest_value = max(len(value) for _, value, _ in rows)
  value_width = min(widest_value, WIDTH - name_width - SENTENCE - 4)
  margin = name_width + value_width + 4
  lines = []
  for name, value, field in rows:
    sentence = field.sentence
    expectation = fields.expectation(field.kind, field.limits)
    if expectation not in ("a text", "true or false"):
      sentence = f"{sentence} [{expectation}]"
    # A long sentence goes on below itself, so that the columns stay straight.
    wrapped = textwrap.wrap(sentence, WIDTH - margin)
    if len(value) > value_width:
      # A long value has a line for itself.
      lines.append(f"{name:<{name_width}}  {value}")
    else:
      lines.append(f"{name:<{name_width}}  {value:<{value_width}}  {wrapped.pop(0)}")
    lines += [" " * margin + line for line in wrapped]
  return "\n".join(lines)


def quoted(value: object) -> str:
  """A value as it is written on the command line; a text that would not be seen has quotes."""
  from instructjax.settings import fields

  text = fields.show(value)
  return text if text.strip() else f'"{text}"'
