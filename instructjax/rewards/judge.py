"""A reward that a chat model gives: openai:URL#MODEL, for every server that speaks OpenAI's chat completions."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.errors import UserError
from instructjax.rewards.endpoint import AgainError, brief, concurrently, headers, retried, send

LOW, HIGH = 1.0, 10.0
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

  Raises UserError as `endpoint.open_endpoint`, and for a template without its two places.  An answer without a number from
  1 to 10 is asked for again.
  """
  url, head, template = f"{base.rstrip('/')}/chat/completions", headers(base, options), _template(options["template"])

  def one(part: tuple[str, str], stop: threading.Event) -> float:
    said = {"role": "user", "content": filled(template, *part)}
    body = {"model": model, "messages": [said], "temperature": 0}
    return retried(url, options, stop, lambda: rating(url, send(url, body, head, options["timeout"])))

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return concurrently(one, list(zip(prompts, responses, strict=True)), options["concurrent"])

  return score, {"template_sha256": hashlib.sha256(template.encode()).hexdigest()}


def _template(file: str) -> str:
  if not file:
    return TEMPLATE
  try:
    text = Path(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"#template={file}: cannot be read as UTF-8 text ({error})") from None
  for place in ("{prompt}", "{response}"):
    if place not in text:
      raise UserError(f"#template={file}: {place} is missing; write {{prompt}} and {{response}} where the texts go")
  return text


def filled(template: str, prompt: str, response: str) -> str:
  """The template with both texts; a text that holds "{response}" itself stays as it is."""
  texts = {"prompt": prompt, "response": response}
  return re.sub(r"\{(prompt|response)\}", lambda found: texts[found[1]], template)


def rating(url: str, answer: Any) -> float:
  """The last number of what the model said.

  Raises AgainError where that is none from 1 to 10, UserError for another answer.
  """
  try:
    text = answer["choices"][0]["message"]["content"]
  except (KeyError, IndexError, TypeError):
    raise UserError(f"{url}: answered {brief(str(answer))}; no chat completion") from None
  numbers = [float(number) for number in _NUMBER.findall(text if isinstance(text, str) else "")]
  if not numbers or not LOW <= numbers[-1] <= HIGH:
    raise AgainError(f"the model said {brief(str(text))!r}, which does not end with a number from {LOW:g} to {HIGH:g}")
  return numbers[-1]
