"""A reward by a `transformers` sequence classifier: `classifier:FOLDER_OR_HUB_ID#LABEL`.

The classifier runs in torch, which only this kind of reward needs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from instructjax.errors import UserError

# What the classifier reads: prompt + response, both as a pair of texts, the response alone, or
# both as a chat in its own template.
INPUTS = ("joined", "pair", "response", "chat")
OUTPUTS = ("logit", "probability")
# Of a prompt that does not fit beside its response, the end is read, or all of it in pieces, of
# which the highest score counts: a text supports a sentence where any part of it does.
LONG = ("cut", "pieces")
# The share of a piece that is read again in its neighbour, on each side.
OVERLAP = 0.25
UNLIMITED = 1 << 30  # more tokens than any text has


def open_classifier(
  source: str,
  label: str,
  options: Mapping[str, Any],
) -> tuple[Callable[[Sequence[str], Sequence[str]], list[float]], dict[str, Any]]:
  """Opens a classifier; a text that is too long for it loses its beginning, or is read in pieces.

  Args:
    source: A folder, or an id of the Hugging Face hub.
    label: The label to score by, its name or number; "" for a classifier with a single label.
    options: Those of `spec.OPTIONS["classifier"]`.

  Returns:
    A function that scores (prompts, responses) by the logit or the probability of the label, and
    its entry in the manifest.

  Raises:
    UserError: a package is missing, the source is not a classifier, or the label or an option is
      unknown.
  """
  _check_choice(source, "input", options["input"], INPUTS)
  _check_choice(source, "as", options["as"], OUTPUTS)
  _check_choice(source, "long", options["long"], LONG)
  if options["long"] == "pieces" and options["input"] != "pair":
    raise UserError(
      f"classifier:{source}: long=pieces with input={options['input']}; only of a pair "
      "(input=pair) can the prompt be read in pieces"
    )
  try:
    torch = importlib.import_module("torch")
    transformers = importlib.import_module("transformers")
  except ImportError as error:
    raise UserError(
      f"classifier:{source} needs the packages torch and transformers ({error}): run `pip install "
      "'instructjax[classifier]'`"
    ) from None
  tokenizer, model = _load(transformers, source, options["device"])
  column = _column(source, model.config, label)
  if options["as"] == "probability" and model.config.num_labels == 1:
    # The softmax of a single logit is always 1.
    raise UserError(
      f"classifier:{source}: has one label, as=probability has no meaning; take as=logit"
    )
  if options["input"] == "chat" and not tokenizer.chat_template:
    raise UserError(
      f"classifier:{source}: input=chat, but its tokenizer has no chat template; take input=joined"
    )
  encoding = _encoding(tokenizer, model.config, options["input"])

  def score_batch(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    texts = _inputs(tokenizer, options["input"], prompts, responses)
    inputs = tokenizer(*texts, **encoding).to(options["device"])
    with torch.inference_mode():
      values = model(**inputs).logits.float()
    if options["as"] == "probability":
      values = values.softmax(-1)
    return values[:, column].tolist()

  def score_all(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    scores: list[float] = []
    for start in range(0, len(prompts), options["batch"]):
      part = slice(start, start + options["batch"])
      scores += score_batch(prompts[part], responses[part])
    return scores

  limit = encoding.get("max_length")

  def fits(prompt: str, response: str) -> bool:
    ids = tokenizer(prompt, response)["input_ids"]
    return limit is None or len(ids) <= limit

  def score_pieces(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    parts = [
      pieces(prompt, partial(fits, response=response), tokens_of(tokenizer, prompt), limit)
      for prompt, response in zip(prompts, responses, strict=True)
    ]
    part_prompts: list[str] = []
    part_responses: list[str] = []
    for prompt_parts, response in zip(parts, responses, strict=True):
      part_prompts += prompt_parts
      part_responses += [response] * len(prompt_parts)
    part_scores = iter(score_all(part_prompts, part_responses))
    return [max(next(part_scores) for _ in prompt_parts) for prompt_parts in parts]

  score = score_pieces if options["long"] == "pieces" else score_all
  about = {
    "labels": model.config.num_labels,
    "transformers": transformers.__version__,
    "torch": torch.__version__,
  }
  return score, about


def pieces(
  text: str,
  fits: Callable[[str], bool],
  tokens: Sequence[str],
  limit: int | None = None,
) -> list[str]:
  """Returns a text that fits, or the fewest equal pieces that do, each overlapping its neighbours.

  Args:
    text: The text.
    fits: Whether a text fits beside its response.
    tokens: The text in parts, between which it may be cut: a piece has whole parts, as many as its
      neighbours, and one at least.
    limit: No text of more parts fits, so that no larger pieces are tried.

  Where not even an empty text fits, the text is returned as it is.
  """
  if fits(text) or not fits(""):
    return [text]
  count = max(len(tokens) // limit, 1) if limit else 1
  while count < len(tokens):
    count += 1
    width = len(tokens) / count
    parts = []
    for number in range(count):
      start = max(round((number - OVERLAP) * width), 0)
      end = round((number + 1 + OVERLAP) * width)
      parts.append("".join(tokens[start:end]))
    if all(fits(part) for part in parts):
      return parts
  return list(tokens)


def tokens_of(tokenizer: Any, text: str) -> list[str]:
  """Returns a text in parts, one for each of its tokens.

  A tokenizer that does not say where its tokens stand has one part for each character.
  """
  if not tokenizer.is_fast:
    return list(text)
  encoded = tokenizer(
    text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
  )
  # What stands between two tokens (spaces) belongs to the first; the bytes of one character may be
  # several tokens, which begin at the same place.
  starts = sorted({0, *(start for start, _ in encoded["offset_mapping"])})
  ends = [*starts[1:], len(text)]
  return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _check_choice(source: str, name: str, value: str, choices: Sequence[str]) -> None:
  """Raises UserError where an option has a value that is not among its choices."""
  if value not in choices:
    raise UserError(f"classifier:{source}: {name}={value!r}; known are {', '.join(choices)}")


def _encoding(tokenizer: Any, config: Any, form: str) -> dict[str, Any]:
  """Returns the options with which the tokenizer encodes a batch of inputs of a form."""
  encoding = {
    "padding": True,
    "return_tensors": "pt",
    # A chat template writes the special tokens itself.
    "add_special_tokens": form != "chat",
  }
  positions = getattr(config, "max_position_embeddings", None) or UNLIMITED
  # A tokenizer that does not know its limit gives a number near 1e30.
  length = min(tokenizer.model_max_length, positions)
  if length < UNLIMITED:
    encoding |= {"truncation": True, "max_length": length}
  return encoding


def _inputs(
  tokenizer: Any,
  form: str,
  prompts: Sequence[str],
  responses: Sequence[str],
) -> tuple[list[str], ...]:
  """Returns the texts of a batch as the tokenizer takes them: one list, or two for pairs."""
  pairs = list(zip(prompts, responses, strict=True))
  match form:
    case "joined":
      return ([prompt + response for prompt, response in pairs],)
    case "pair":
      return (list(prompts), list(responses))
    case "response":
      return (list(responses),)
    case _:
      return ([_chat(tokenizer, prompt, response) for prompt, response in pairs],)


def _load(transformers: Any, source: str, device: str) -> tuple[Any, Any]:
  """Returns the tokenizer and the model of a classifier."""
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
      source, output_loading_info=True
    )
    model = model.to(device).eval()
  except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
    reason = str(error).strip().partition("\n")[0]
    raise UserError(
      f"classifier:{source}: transformers cannot open it ({reason}); give a folder or a hub id"
    ) from error
  # transformers only warns about this, and scores with a random head.
  if info["missing_keys"]:
    missing = ", ".join(sorted(info["missing_keys"])[:3])
    raise UserError(
      f"classifier:{source}: its weights hold no {missing}; this is a model without a trained "
      "classification head, take one that has it"
    )
  # The end of a text is what is scored.
  tokenizer.truncation_side = "left"
  # Many chat models have no padding token. The attention mask hides the padding, and the model
  # finds the last token of a row by the id of the padding.
  if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  if model.config.pad_token_id is None:
    model.config.pad_token_id = tokenizer.pad_token_id
  return tokenizer, model


def _column(source: str, config: Any, label: str) -> int:
  """Returns the column of a label in the logits, by its name or its number."""
  columns = {str(name): int(number) for number, name in config.id2label.items()}
  if not label and len(columns) == 1:
    return 0
  if label in columns:
    return columns[label]
  if label.isdigit() and int(label) < len(columns):
    return int(label)
  raise UserError(f"classifier:{source}#{label}: name one of its labels {', '.join(columns)}")


def _chat(tokenizer: Any, prompt: str, response: str) -> str:
  """Returns a prompt and its response as a chat in the classifier's own template."""
  turns = [
    {"role": "user", "content": prompt.strip()},
    {"role": "assistant", "content": response.strip()},
  ]
  return tokenizer.apply_chat_template(turns, tokenize=False)
