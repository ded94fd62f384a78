"""A reward that a `transformers` sequence classifier gives, in torch:
classifier:FOLDER_OR_HUB_ID#LABEL.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from instructjax.errors import UserError

INPUTS = ("joined", "pair", "response", "chat")
OUTPUTS = ("logit", "probability")


def open_classifier(
  source: str, label: str, options: Mapping[str, Any]
) -> tuple[Callable[[Sequence[str], Sequence[str]], list[float]], dict[str, Any]]:
  """(the logit of the only label, or the logit or probability of the chosen one; what the manifest
  says about it).

  The classifier reads the prompt and the response joined, as a pair, the response alone, or both
  through its chat template. A text that is too long loses its beginning.  Raises UserError
  without the packages, for a source that is no classifier and for an unknown label.
  """
  for name, known in (("input", INPUTS), ("as", OUTPUTS)):
    if options[name] not in known:
      raise UserError(
        f"classifier:{source}: {name}={options[name]!r}; known are {', '.join(known)}"
      )
  try:
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
  except ImportError as error:
    raise UserError(
      f"classifier:{source} needs the packages torch and transformers ({error}): run `pip install "
      "'instructjax[classifier]'`"
    ) from None
  tokenizer, model = _load(transformers, source, options["device"])
  column = _column(source, model.config, label)
  if options["as"] == "probability" and model.config.num_labels == 1:
    raise UserError(
      f"classifier:{source}: has one label, as=probability has no meaning; take as=logit"
    )
  if options["input"] == "chat" and not tokenizer.chat_template:
    raise UserError(
      f"classifier:{source}: input=chat, but its tokenizer has no chat template; take input=joined"
    )
  length = min(
    tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 1 << 30
  )
  cut = {"truncation": True, "max_length": length} if length < 1 << 30 else {}

  def encode(prompts: Sequence[str], responses: Sequence[str]) -> Any:
    texts: tuple[list[str], ...] = {
      "joined": lambda: ([p + r for p, r in zip(prompts, responses)],),
      "pair": lambda: (list(prompts), list(responses)),
      "response": lambda: (list(responses),),
      "chat": lambda: ([_chat(tokenizer, p, r) for p, r in zip(prompts, responses)],),
    }[options["input"]]()
    special = options["input"] != "chat"  # the template writes them itself
    return tokenizer(*texts, padding=True, return_tensors="pt", add_special_tokens=special, **cut)

  def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    found: list[float] = []
    for at in range(0, len(prompts), options["batch"]):
      part = slice(at, at + options["batch"])
      with torch.inference_mode():
        logits = model(
          **encode(prompts[part], responses[part]).to(options["device"])
        ).logits.float()
      values = logits.softmax(-1) if options["as"] == "probability" else logits
      found += values[:, column].tolist()
    return found

  return score, {
    "labels": model.config.num_labels,
    "transformers": transformers.__version__,
    "torch": torch.__version__,
  }


def _load(transformers: Any, source: str, device: str) -> tuple[Any, Any]:
  """The tokenizer and the model.  A head that is not in the weights would be drawn at random: that
  is an error.
  """
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
  if info["missing_keys"]:
    raise UserError(
      f"classifier:{source}: its weights hold no {', '.join(sorted(info['missing_keys'])[:3])}; "
      "this is a model without a "
      "trained classification head, take one that has it"
    )
  tokenizer.truncation_side = "left"
  if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  if model.config.pad_token_id is None:
    model.config.pad_token_id = tokenizer.pad_token_id
  return tokenizer, model


def _column(source: str, config: Any, label: str) -> int:
  """The column of a label, by its name or its number."""
  known = {str(name): int(number) for number, name in config.id2label.items()}
  if not label and len(known) == 1:
    return 0
  if label in known:
    return known[label]
  if label.isdigit() and int(label) < len(known):
    return int(label)
  raise UserError(f"classifier:{source}#{label}: name one of its labels {', '.join(known)}")


def _chat(tokenizer: Any, prompt: str, response: str) -> str:
  turns = [
    {"role": "user", "content": prompt.strip()},
    {"role": "assistant", "content": response.strip()},
  ]
  return tokenizer.apply_chat_template(turns, tokenize=False)
