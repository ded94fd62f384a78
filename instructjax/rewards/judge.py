"""A reward by a chat model: `openai:URL#MODEL`, for servers with OpenAI's chat completions.

The model is asked to rate each response from 1 to 10. evals/preference asks chat models to
compare two responses with the same `open_chat`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from instructjax.errors import UserError
from instructjax.rewards.endpoint import AgainError, brief, concurrently, headers, retry, send

T = TypeVar("T")

LOW, HIGH = 1.0, 10.0
TEMPLATE = """\
Below are an instruction and a response to it. \
Judge how helpful, truthful and harmless the response is.

Instruction:
{prompt}

Response:
{response}

Give a rating from 1 (very bad) to 10 (excellent). End with the rating as a number."""
# A number, or the first number of a fraction: "7/10" is 7.
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?")


def open_judge(
  base: str,
  model: str,
  options: Mapping[str, Any],
) -> tuple[Callable[[Sequence[str], Sequence[str]], list[float]], dict[str, Any]]:
  """Opens a chat model that rates responses at temperature 0.

  Args:
    base: The address of the server, with its /v1.
    model: The name of the model on the server.
    options: Those of `spec.OPTIONS["openai"]`.

  Returns:
    A function that rates (prompts, responses), and its entry in the manifest. An answer without a
    number from 1 to 10 is asked for again.

  Raises:
    UserError: as `endpoint.open_endpoint`, and for a template without its two places.
  """
  ask = open_chat(base, model, options)
  form = template(options["template"], TEMPLATE, ("prompt", "response"))

  def rate(pair: tuple[str, str], stop: threading.Event) -> float:
    prompt, response = pair
    message = filled(form, prompt=prompt, response=response)
    return ask(message, stop, rating)

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    pairs = list(zip(prompts, responses, strict=True))
    return concurrently(rate, pairs, options["concurrent"])

  return score, {"template_sha256": digest(form)}


def open_chat(
  base: str,
  model: str,
  options: Mapping[str, Any],
) -> Callable[[str, threading.Event, Callable[[str], T]], T]:
  """Opens a chat model.

  Returns:
    A function (message, stop, read) that sends the message at temperature 0 and returns
    read(answer). It asks again where `read` raises AgainError, until `stop` is set.

  Raises:
    UserError: as `endpoint.open_endpoint`.
  """
  url = f"{base.rstrip('/')}/chat/completions"
  head = headers(base, options)

  def ask(message: str, stop: threading.Event, read: Callable[[str], T]) -> T:
    body = {
      "model": model,
      "messages": [{"role": "user", "content": message}],
      "temperature": 0,
    }

    # Reading is part of the attempt: an answer that cannot be read is asked for again.
    def attempt() -> T:
      answer = send(url, body, head, options["timeout"])
      return read(_answer_text(url, answer))

    return retry(url, options, stop, attempt)

  return ask


def _answer_text(url: str, answer: Any) -> str:
  """Returns the text of a chat completion; raises UserError where the answer is none."""
  try:
    text = answer["choices"][0]["message"]["content"]
  except (KeyError, IndexError, TypeError):
    raise UserError(f"{url}: answered {brief(str(answer))}; no chat completion") from None
  # The content is null where a model only calls tools.
  return text if isinstance(text, str) else ""


def template(file: str, default: str, places: Sequence[str]) -> str:
  """Returns the text of a template file, or the default where `file` is "".

  Raises:
    UserError: the file cannot be read, or lacks one of the {places}.
  """
  if not file:
    return default
  try:
    text = Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"#template={file}: cannot be read as UTF-8 text ({error})") from None
  spellings = [f"{{{place}}}" for place in places]
  for spelling in spellings:
    if spelling not in text:
      raise UserError(
        f"#template={file}: {spelling} is missing; write {' and '.join(spellings)} where the texts "
        "go"
      )
  return text


def digest(text: str) -> str:
  """Returns the sha256 of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


def filled(form: str, **texts: str) -> str:
  """Returns a template with texts in its places."""
  # All places are filled at once, so that a prompt which holds "{response}" stays as it is.
  places = "|".join(texts)
  return re.sub(rf"\{{({places})\}}", lambda match: texts[match[1]], form)


def rating(text: str) -> float:
  """Returns the last number of a model's answer.

  Raises:
    AgainError: there is none, or it is not from 1 to 10.
  """
  # A model may count points first, but was asked to end with the rating.
  numbers = [float(number) for number in _NUMBER.findall(text)]
  if not numbers or not LOW <= numbers[-1] <= HIGH:
    raise AgainError(
      f"the model said {brief(text)!r}, which does not end with a number from {LOW:g} to {HIGH:g}"
    )
  return numbers[-1]
