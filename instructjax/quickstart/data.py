"""The data of the quickstart as JSONL files, as a user would bring their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructjax.data.public import tone
from instructjax.data.records import records, validation
from instructjax.data.records.records import Comparison, Demonstration, Prompt, Text
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.settings.quickstart import QuickstartSettings


def write(settings: QuickstartSettings, folder: Path, tokenizer: Tokenizer) -> tone.Tasks:
  """Writes the tone data into a folder, one file for each kind of record, and returns it.

  Raises:
    UserError: the settings ask for more records than there are texts.
  """
  sizes = tone.Sizes(
    demonstrations=settings.demonstrations,
    comparisons=settings.comparisons,
    gold=settings.gold,
    # Every prompt is answered in one iteration of PPO alone.
    prompts=settings.iterations * settings.prompts,
    test_prompts=settings.test_prompts,
    test_comparisons=settings.test_comparisons,
  )
  tasks = tone.tasks(settings.seed, sizes)
  # The activations of every row of text are computed before the first step, so text that is never
  # drawn would only cost time.
  enough = first_texts(tasks.text_train, tokenizer, settings.text_rows * settings.text)
  tasks = tasks._replace(text_train=enough)
  if settings.system:
    tasks = with_system_message(tasks, settings.system)
  folder.mkdir(parents=True, exist_ok=True)
  tone.write(folder, tasks)
  return tasks


def with_system_message(tasks: tone.Tasks, text: str) -> tone.Tasks:
  """Returns the tasks with every prompt as a chat: a system message, and the user's instruction."""

  def as_chat(record: Any) -> Any:
    messages = (
      {"role": "system", "content": text},
      {"role": "user", "content": record.prompt},
    )
    return dataclasses.replace(record, prompt=validation.transcript(messages), turns=messages)

  chats: dict[str, Any] = {}
  for name in ("demonstrations", "comparisons", "gold", "prompts"):
    chats[name] = [as_chat(record) for record in getattr(tasks, name)]
  for name in ("test_prompts", "test_comparisons"):
    by_domain = getattr(tasks, name)
    chats[name] = {
      domain: [as_chat(record) for record in part] for domain, part in by_domain.items()
    }
  return tasks._replace(**chats)


def instruction(prompt: Demonstration | Prompt) -> str:
  """Returns what the user says in a prompt."""
  return prompt.turns[-1]["content"] if prompt.turns else prompt.prompt


def first_texts(texts: Sequence[Text], tokenizer: Tokenizer, tokens: int) -> list[Text]:
  """Returns the first texts that together have at least `tokens` tokens, or all of them."""
  chosen: list[Text] = []
  total = 0
  for text in texts:
    if total >= tokens:
      break
    chosen.append(text)
    # An end-of-text token closes each of them.
    total += len(tokenizer.encode(text.text)) + 1
  return chosen


def test_prompts(folder: Path) -> list[Demonstration]:
  """Returns the prompts of the evaluation with the answers of people, one domain after another."""
  prompts: list[Demonstration] = []
  for domain in tone.TEST:
    prompts += records.read(folder / f"test_prompts_{domain}.jsonl", "demonstration")
  return prompts


def test_comparisons(folder: Path) -> dict[str, list[Comparison]]:
  """Returns the comparisons of the evaluation by domain."""
  comparisons = {}
  for domain in tone.TEST:
    path = folder / f"test_comparisons_{domain}.jsonl"
    comparisons[domain] = records.read(path, "comparison")
  return comparisons


def held_out_text(folder: Path) -> list[Text]:
  """Returns the articles that no stage is trained on."""
  return records.read(folder / "text_valid.jsonl", "text")
