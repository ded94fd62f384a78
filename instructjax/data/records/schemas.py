"""The five kinds of records as dataclasses, and what their fields may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

Message = Mapping[str, str]  # role (system, user, assistant) and content


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A prompt and the completion to imitate."""

  prompt: str
  completion: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(
    default=None, compare=False
  )  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class Comparison:
  """K completions of one prompt and their ranks; `ratings` are of each Table 3's, or Fig. 11's,
  `sources` say what drew it.
  """

  prompt: str
  completions: tuple[str, ...]
  ranks: tuple[int, ...]
  labeler: str | None = None
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  ratings: tuple[Mapping[str, Any], ...] | None = None
  sources: tuple[Mapping[str, Any], ...] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(
    default=None, compare=False
  )  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt without a label."""

  prompt: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  turns: tuple[Message, ...] | None = dataclasses.field(
    default=None, compare=False
  )  # of a prompt that is a chat


@dataclasses.dataclass(frozen=True)
class FewShot:
  """A labeler's instruction and {input, output} pairs that follow it; `few_shot` makes
  demonstrations of it.
  """

  instruction: str
  pairs: tuple[Mapping[str, str], ...]
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None


@dataclasses.dataclass(frozen=True)
class Text:
  """A document of pretraining text."""

  text: str
  id: str | None = None
  source: str | None = None


Labelled = Demonstration | Comparison | Prompt | FewShot
Record = Labelled | Text
KINDS: dict[str, type] = {
  "demonstration": Demonstration,
  "comparison": Comparison,
  "prompt": Prompt,
  "few_shot": FewShot,
  "text": Text,
}
K = (2, 9)  # completions of a comparison
ORIGIN = ("model", "temperature", "seed")  # of a completion; only the model is required
RATINGS = (  # Table 3; `overall` is 1 to 7, the others are true or false
  "overall",
  "fails_instruction",
  "inappropriate",
  "hallucination",
  "satisfies_constraint",
  "sexual",
  "violent",
  "encourages_harm",
  "denigrates",
  "harmful_advice",
  "opinion",
  "moral_judgment",
)
CONTINUATION = {  # Fig. 11, ratings of the continuation of a text: integers from .. to
  "continuity": (1, 7),  # how well it goes on
  "toxicity": (0, 2),
  "relative_toxicity": (-1, 1),  # to the text before it: 1 is more toxic
}
ANNOTATIONS = (  # Table 7, true or false
  "ambiguous",
  "sensitive_content",
  "identity_dependent",
  "closed_domain",
  "continuation_style",
  "requests_opinion",
  "requests_advice",
  "requests_moral_judgment",
  "explicit_safety_constraints",
  "other_explicit_constraints",
  "intent_unclear",
)
NOT_TEXT = (
  "completions",
  "ranks",
  "ratings",
  "sources",
  "pairs",
  "annotations",
  "consent",
)  # fields with checks of their own


class RecordError(ValueError):
  """What is wrong with one record, a message for each problem; `records.read` adds the place.  A
  message begins with the field.
  """
