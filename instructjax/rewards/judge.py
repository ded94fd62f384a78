"""A reward that a chat model gives: openai:URL#MODEL, for every server that speaks OpenAI's chat
completions.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from instructjax.errors import UserError
from instructjax.rewards.endpoint import AgainError, brief, concurrently, headers, retried, send

LOW, HIGH = 1.0, 10.0
T = TypeVar("T")
TEMPLATE = """Below are an instruction and a response to it. Judge how helpful, truthful and harmless the response is.

Instruction:
{prompt}

Response:
{response}

Give a rating from 1 (very bad) to 10 (excellent). End with the rating as a number."""
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?")  # "7/10" is 7


def open_judge(
  base: str, model: str, options: Mapping[str, Any]
) -> tuple[Callable[[Sequence[str], Sequence[str]], list[float]], dict[str, Any]]:
  """(ratings from 1 to 10 by a chat model at temperature 0, what the manifest says about it).

  Raises UserError as `endpoint.open_endpoint`, and for a template without its two places.  An
  answer without a number from 1 to 10 is asked for again.
  """
  ask, form = (
    open_chat(base, model, options),
    template(options["template"], TEMPLATE, ("prompt", "response")),
  )

  def one(part: tuple[str, str], stop: threading.Event) -> float:
    return ask(filled(form, prompt=part[0], response=part[1]), stop, rating)

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return concurrently(one, list(zip(prompts, responses, strict=True)), options["concurrent"])

  return score, {"template_sha256": digest(form)}


def open_chat(
  base: str, model: str, options: Mapping[str, Any]
) -> Callable[[str, threading.Event, Callable[[str], T]], T]:
  """A function (message, stop, read) -> read(what the chat model said to the message at temperature
  0), which is asked again where `read` raises AgainError.  Raises UserError as
  `endpoint.open_endpoint`.
  """
  url, head = f"{base.rstrip('/')}/chat/completions", headers(base, options)

  def ask(message: str, stop: threading.Event, read: Callable[[str], T]) -> T:
    body = {"model": model, "messages": [{"role": "user", "content": message}], "temperature": 0}
    return retried(
      url, options, stop, lambda: read(_words(url, send(url, body, head, options["timeout"])))
    )

  return ask


def _words(url: str, answer: Any) -> str:
  """What the model said.  Raises UserError where the answer is no chat completion."""
  try:
    text = answer["choices"][0]["message"]["content"]
  except (KeyError, IndexError, TypeError):
    raise UserError(f"{url}: answered {brief(str(answer))}; no chat completion") from None
  return text if isinstance(text, str) else ""


def template(file: str, default: str, places: Sequence[str]) -> str:
  """The text of a file, or the default for "".  Raises UserError where a {place} is missing in it."""
  if not file:
    return default
  try:
    text = Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"#template={file}: cannot be read as UTF-8 text ({error})") from None
  wanted = " and ".join(f"{{{place}}}" for place in places)
  for place in places:
    if f"{{{place}}}" not in text:
      raise UserError(
        f"#template={file}: {{{place}}} is missing; write {wanted} where the texts go"
      )
  return text


def digest(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def filled(form: str, **texts: str) -> str:
  """A template with its texts; a text that holds "{response}" itself stays as it is."""
  return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda found: texts[found[1]], form)


def rating(text: str) -> float:
  """The last number of what the model said.  Raises AgainError where that is none from 1 to 10."""
  numbers = [float(number) for number in _NUMBER.findall(text)]
  if not numbers or not LOW <= numbers[-1] <= HIGH:
    raise AgainError(
      f"the model said {brief(text)!r}, which does not end with a number from {LOW:g} to {HIGH:g}"
    )
  return numbers[-1]
