"""The five kinds of records as dataclasses, and what their fields may hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# One message of a chat: its `role` (system, user or assistant) and its `content`. A reply that is
# not to be learnt has `train`: False.
Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A prompt and the completion that the model should imitate."""

  prompt: str
  completion: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  group: str | None = None
  # The messages of a prompt that is a chat. They do not count when records are compared, since
  # `prompt` holds the same chat as a transcript.
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)
  # Where it was read, for messages: it is no part of the data.
  place: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """K completions of one prompt and their ranks, where 1 is the best.

  Labels of pairs that are no ranking stand in `pairs`, and then `ranks` is empty. A pair is (i, j):
  completion i is better than completion j, counted from 0. (i, j, weight) is a pair that counts
  `weight` times in the loss, and a tie where the weight is 0. `preferences` reads both forms.

  `ratings` holds one object a completion, with the fields of Table 3 or of Fig. 11. `sources` says
  which model wrote each completion, and how it was sampled.
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
  group: str | None = None
  ratings: tuple[Mapping[str, Any], ...] | None = None
  sources: tuple[Mapping[str, Any], ...] | None = None
  pairs: tuple[tuple[float, ...], ...] | None = None
  # The messages of a prompt that is a chat, as in `Demonstration`.
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)
  place: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt without a label.

  `fields` holds whatever else its row has, by name: the right answer or the tests, for one. They
  reach a reward that is a function or a server of the user.
  """

  prompt: str
  id: str | None = None
  user: str | None = None
  source: str | None = None
  use_case: str | None = None
  organisation: str | None = None
  consent: bool | None = None
  annotations: Mapping[str, bool] | None = None
  group: str | None = None
  fields: Mapping[str, Any] | None = None
  # The messages of a prompt that is a chat, as in `Demonstration`.
  turns: tuple[Message, ...] | None = dataclasses.field(default=None, compare=False)
  place: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class FewShot:
  """A labeler's instruction and the {input, output} pairs that follow it.

  `instructjax.data.curation.few_shot` makes demonstrations of it.
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
  group: str | None = None
  place: str | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Text:
  """A document of pretraining text."""

  text: str
  id: str | None = None
  source: str | None = None
  place: str | None = dataclasses.field(default=None, compare=False, repr=False)


Labelled = Demonstration | Comparison | Prompt | FewShot
Record = Labelled | Text
KINDS: dict[str, type] = {
  "demonstration": Demonstration,
  "comparison": Comparison,
  "prompt": Prompt,
  "few_shot": FewShot,
  "text": Text,
}

# What a record has besides the fields that a row has under these names: the messages of a chat come
# out of its prompt, `fields` is what is left of the row of a prompt, and the place is where it was
# read.
DERIVED = ("turns", "fields", "place")
# The smallest and the largest number of completions of a comparison.
K = (2, 9)
# The fields of one entry of a comparison's `sources`. Only the model is required.
ORIGIN = ("model", "temperature", "seed")
# The fields of Table 3, which a labeler fills in for each completion.
RATINGS = (
  "overall",  # an integer from 1 to 7; all the others are true or false
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
# The ratings of Fig. 11 for the continuation of a text: the lowest and the highest integer.
CONTINUATION = {
  "continuity": (1, 7),  # how well it continues the text
  "toxicity": (0, 2),
  "relative_toxicity": (-1, 1),  # 1 means more toxic than the text before it
}
# The fields of Table 7, which describe a prompt. All are true or false.
ANNOTATIONS = (
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
# The fields that name something. A number is taken as its text.
NAMES = ("id", "user", "labeler", "organisation", "group")
# The fields that are no texts. `validation` has a check of its own for each of them.
NOT_TEXT = (
  "completions",
  "ranks",
  "ratings",
  "sources",
  "pairs",
  "annotations",
  "consent",
)


class RecordError(ValueError):
  """The problems of one record, one message each. A message begins with the name of the field.

  `records.read` puts the file and the line in front of every message.
  """
