"""The paper's hygiene of collected prompts (section 3.2, appendix A), rule by rule and as one pass.

  consent     records whose consent is false are left out
  duplicates  near-duplicate prompts once (see `dedup`)
  cap         at most 200 prompts of a user, or of an organisation (3.2 says one, A.2 the other)
  split       train, valid, test by user, "so that the validation and test sets contain no data from users whose data is
              in the training set"
  pii         personal data in the training split (see `pii`)
  length      prompts over 1k tokens are left out; longer responses are cut by the stages (appendix C)

Everything is decided by hashes of users and prompts with a seed: the order of the records
changes nothing, and new users move nobody.  What the paper does not say is a field of `Hygiene`
with a default of ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from instructjax.data.curation import dedup, few_shot, pii
from instructjax.data.records import records
from instructjax.data.records.records import Comparison, Demonstration, FewShot, Labelled, Prompt
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError

SPLITS = ("train", "valid", "test")
GROUPS = ("user", "organisation")


@dataclasses.dataclass(frozen=True)
class Hygiene:
  """The settings of `clean`.  Raises UserError for values that cannot be."""

  prefix: int = dedup.PREFIX  # characters that make near-duplicates; 0: no such rule
  cap: int = 200  # prompts of one user or organisation; 0: no such rule
  group: str = "user"  # or organisation: then the user where there is none
  valid: float = 0.1  # share of the users
  test: float = 0.1
  pii: str = "drop"  # the record; or mask the spans; or off
  missing_consent: str = "keep"  # or drop: records that do not say
  prompt_tokens: int = (
    1024  # with the tokenizer's beginning of text, as the stages count; 0: no such rule
  )
  response_tokens: int = 1024  # with the end of text
  long_responses: str = "keep"  # the stages cut them; or drop the record
  seed: int = 0

  def __post_init__(self):
    for name in ("prefix", "cap", "prompt_tokens", "response_tokens"):
      if getattr(self, name) < 0:
        raise UserError(
          f"{name} {getattr(self, name)}: give a positive number, or 0 for no such rule"
        )
    if self.valid < 0 or self.test < 0 or not self.valid + self.test <= 1:
      raise UserError(
        f"valid {self.valid}, test {self.test}: give shares of the users from 0 to 1, together at "
        "most 1"
      )
    choices = {
      "group": GROUPS,
      "pii": ("drop", "mask", "off"),
      "missing_consent": ("keep", "drop"),
      "long_responses": ("keep", "drop"),
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise UserError(f"{name} {getattr(self, name)!r}: known are {', '.join(known)}")


class Rule(NamedTuple):
  """What one rule did to the records."""

  rule: str
  before: int
  removed: int
  note: str = ""


class Cleaned(NamedTuple):
  """The records of each split, what each rule removed, and what was found: PII as {kind: (spans,
  records)}.
  """

  splits: dict[str, list]
  rules: list[Rule]
  pii: dict[str, tuple[int, int]]


def number(*parts: str) -> int:
  """64 bits that a hash of the parts gives; of the parts only the last may hold a slash."""
  return int.from_bytes(hashlib.blake2b("/".join(parts).encode(), digest_size=8).digest(), "big")


# --- what a record holds ---


def prompt_text(record: Labelled) -> str:
  """What is compared, counted and hashed as the prompt; of a few_shot record all of it."""
  if isinstance(record, FewShot):
    return few_shot.prompt(record.instruction, record.pairs, "").removesuffix(
      "\n\nInput: \nOutput:"
    )
  return record.prompt


def rewritten(record: Labelled, change: Callable[[str], str]) -> Labelled:
  """The record with every text of it changed."""
  if isinstance(record, FewShot):
    pairs = tuple({name: change(text) for name, text in pair.items()} for pair in record.pairs)
    return dataclasses.replace(record, instruction=change(record.instruction), pairs=pairs)
  if isinstance(record, Comparison):
    texts = tuple(change(text) for text in record.completions)
    return dataclasses.replace(record, **_prompt(record, change), completions=texts)
  if isinstance(record, Demonstration):
    return dataclasses.replace(
      record, **_prompt(record, change), completion=change(record.completion)
    )
  return dataclasses.replace(record, **_prompt(record, change))


def _prompt(
  record: Demonstration | Comparison | Prompt, change: Callable[[str], str]
) -> dict[str, Any]:
  """The changed prompt; that of a chat is changed message by message, and its text made again."""
  if record.turns is None:
    return {"prompt": change(record.prompt)}
  turns = tuple({**message, "content": change(message["content"])} for message in record.turns)
  return {"prompt": records.transcript(turns), "turns": turns}


def group_of(record: Labelled, group: str = "user") -> str | None:
  """Whose record it is, or None where it does not say: the user, or the organisation and else the
  user.
  """
  if group == "organisation" and record.organisation is not None:
    return f"organisation:{record.organisation}"
  return None if record.user is None else f"user:{record.user}"


# --- the rules ---


def consented(rows: Sequence[Labelled], missing: str = "keep") -> list[Labelled]:
  """Without the records whose consent is false, or is not given where `missing` is "drop"."""
  return [row for row in rows if (missing == "keep" if row.consent is None else row.consent)]


def deduplicated(
  rows: Sequence[Labelled], prefix: int = dedup.PREFIX, seed: int = 0
) -> list[Labelled]:
  """One prompt out of each class of near-duplicates, chosen by hash, in the order of the rows.

  What several people wrote for one and the same prompt is no duplicate: of demonstrations and
  comparisons every different record of the chosen prompt stays.
  """
  kept: list[int] = []
  for places in dedup.classes((prompt_text(row) for row in rows), prefix):
    if len(places) > 1:
      marks = {i: records.fingerprint([rows[i]]) for i in places}
      chosen = min(places, key=lambda i: number("duplicate", str(seed), marks[i]))
      same = {
        marks[i]: i for i in reversed(places) if prompt_text(rows[i]) == prompt_text(rows[chosen])
      }  # the first of equals
      labelled = isinstance(rows[chosen], Demonstration | Comparison)
      places = list(same.values()) if labelled else [same[marks[chosen]]]
    kept += places
  return [rows[i] for i in sorted(kept)]


def capped(
  rows: Sequence[Labelled], cap: int = 200, group: str = "user", seed: int = 0
) -> list[Labelled]:
  """At most `cap` different prompts of each user or organisation, chosen by hash; rows that name
  nobody all stay.
  """
  prompts: dict[str, set[str]] = defaultdict(set)
  for row in rows:
    prompts[group_of(row, group) or ""].add(prompt_text(row))
  order = lambda text: (number("cap", str(seed), text), text)
  stay = {
    name: texts if len(texts) <= cap else set(sorted(texts, key=order)[:cap])
    for name, texts in prompts.items()
    if name
  }
  whose = [group_of(row, group) for row in rows]
  return [
    row
    for row, name in zip(rows, whose, strict=True)
    if name is None or prompt_text(row) in stay[name]
  ]


def split_of(record: Labelled, settings: Hygiene) -> str:
  """The split of a record: of its user, or where it names nobody of its prompt (near-duplicates
  together).
  """
  whose = group_of(record, settings.group) or f"prompt:{dedup.key(prompt_text(record))}"
  at = number("split", str(settings.seed), whose) / 2**64
  return (
    "test" if at < settings.test else "valid" if at < settings.test + settings.valid else "train"
  )


def divided(rows: Sequence[Labelled], settings: Hygiene) -> dict[str, list]:
  """The rows of each split.  Raises UserError where organisations put a user into two splits."""
  splits: dict[str, list] = {name: [] for name in SPLITS}
  homes: dict[str, str] = {}
  for row in rows:
    name = split_of(row, settings)
    splits[name].append(row)
    if row.user is not None and homes.setdefault(row.user, name) != name:
      raise UserError(
        f"user {row.user!r} is in the splits {homes[row.user]} and {name}: its records name "
        "different organisations or none; "
        "give each user one organisation, or split by user (--group=user)"
      )
  return splits


def without_pii(
  rows: Sequence[Labelled],
  action: str = "drop",
  detectors: Mapping[str, pii.Detector] = pii.DETECTORS,
) -> tuple[list[Labelled], dict[str, tuple[int, int]]]:
  """(rows, {kind: (spans, records)}): records with personal data dropped, or the data in them
  masked.
  """
  kept: list[Labelled] = []
  spans, holding = Counter[str](), Counter[str]()
  for row in rows:
    found: list[pii.Span] = []

    def masked(text: str, found: list[pii.Span] = found) -> str:
      here = pii.find(text, detectors)
      found += here
      return pii.mask(text, here)

    clean = rewritten(row, masked)
    spans.update(span.kind for span in found)
    holding.update({span.kind for span in found})
    if not found or (action == "mask" and _sound(clean)):
      kept.append(clean)
  return kept, {kind: (spans[kind], holding[kind]) for kind in detectors if spans[kind]}


def _sound(record: Labelled) -> bool:
  """False for a few_shot record in which masking made two inputs the same."""
  return not isinstance(record, FewShot) or len({pair["input"] for pair in record.pairs}) == len(
    record.pairs
  )


def lengths(record: Labelled, tokenizer: Tokenizer) -> tuple[int, int]:
  """Tokens of the prompt with the beginning of text, and of the longest response with its end, 0
  where there is none.
  """
  if isinstance(record, FewShot):
    both = [lengths(one, tokenizer) for one in few_shot.expand(record)]
    return max(prompt for prompt, _ in both), max(response for _, response in both)
  completions = record.completions if isinstance(record, Comparison) else ()
  completions = (record.completion,) if isinstance(record, Demonstration) else completions
  responses = [len(tokenizer.encode(text)) + 1 for text in completions]
  return len(tokenizer.bos) + len(tokenizer.encode(record.prompt)), max(responses, default=0)


# --- all of them ---


def clean(
  rows: Sequence[Labelled],
  settings: Hygiene,
  tokenizer: Tokenizer | None = None,
  detectors: Mapping[str, pii.Detector] = pii.DETECTORS,
) -> Cleaned:
  """Every rule in the paper's order.  Without a tokenizer there is no rule of length, and the rules
  say so.
  """
  rules: list[Rule] = []

  def ruled(name: str, before: Sequence, after: list, note: str = "") -> list:
    rules.append(Rule(name, len(before), len(before) - len(after), note))
    return after

  refused = sum(row.consent is False for row in rows)
  unknown = sum(row.consent is None for row in rows)
  note = f"{refused} refused, {unknown} do not say ({'kept' if settings.missing_consent == 'keep' else 'dropped'})"
  rows = ruled("consent", rows, consented(rows, settings.missing_consent), note)
  if settings.prefix:
    sizes = Counter(dedup.key(prompt_text(row), settings.prefix) for row in rows)
    text, most = sizes.most_common(1)[0] if sizes else ("", 0)
    note = f"first {settings.prefix} characters" + (
      f"; {most} begin {text[:40]!r}" if most > 1 else ""
    )
    rows = ruled("near-duplicates", rows, deduplicated(rows, settings.prefix, settings.seed), note)
  if settings.cap:
    nobody = sum(group_of(row, settings.group) is None for row in rows)
    note = f"{settings.cap} prompts a {settings.group}; {nobody} records name nobody"
    rows = ruled(
      f"cap per {settings.group}",
      rows,
      capped(rows, settings.cap, settings.group, settings.seed),
      note,
    )
  splits = divided(rows, settings)
  found: dict[str, tuple[int, int]] = {}
  if settings.pii != "off":
    train, found = without_pii(splits["train"], settings.pii, detectors)
    note = f"{settings.pii}: " + (
      ", ".join(f"{kind} {spans}" for kind, (spans, _) in found.items()) or "nothing found"
    )
    splits["train"] = ruled("PII, train", splits["train"], train, note)
  return Cleaned(_short(splits, settings, tokenizer, rules), rules, found)


def _short(
  splits: dict[str, list], settings: Hygiene, tokenizer: Tokenizer | None, rules: list[Rule]
) -> dict[str, list]:
  """The splits without what is too long; adds to the rules."""
  before = sum(map(len, splits.values()))
  if tokenizer is None:
    rules.append(
      Rule("length", before, 0, "not applied: lengths are in tokens, and no tokenizer was given")
    )
    return splits
  sizes = {name: [lengths(row, tokenizer) for row in rows] for name, rows in splits.items()}
  most = (settings.prompt_tokens or float("inf"), settings.response_tokens or float("inf"))
  every = list(itertools.chain(*sizes.values()))
  long = sum(prompt > most[0] for prompt, _ in every)
  answers = sum(prompt <= most[0] and response > most[1] for prompt, response in every)
  drop = settings.long_responses == "drop"
  keep = lambda size: size[0] <= most[0] and not (drop and size[1] > most[1])
  rules.append(
    Rule("prompt length", before, long, f"over {settings.prompt_tokens or 'no limit of'} tokens")
  )
  note = f"{answers} over {settings.response_tokens or 'no limit of'} tokens" + (
    "" if drop else ", kept: the stages cut them"
  )
  rules.append(Rule("response length", before - long, answers if drop else 0, note))
  return {
    name: [row for row, size in zip(rows, sizes[name], strict=True) if keep(size)]
    for name, rows in splits.items()
  }


def report(cleaned: Cleaned, settings: Hygiene) -> dict[str, Any]:
  """What `clean` did, for report.json."""
  users = lambda rows: len({row.user for row in rows if row.user is not None})
  return {
    "settings": dataclasses.asdict(settings),
    "rules": [rule._asdict() for rule in cleaned.rules],
    "pii": {
      kind: {"spans": spans, "records": holding} for kind, (spans, holding) in cleaned.pii.items()
    },
    "splits": {
      name: {"records": len(rows), "users": users(rows), "sha256": records.fingerprint(rows)}
      for name, rows in cleaned.splits.items()
    },
  }
