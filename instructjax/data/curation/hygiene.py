"""The paper's hygiene of collected prompts (Ouyang et al. 2022, section 3.2 and appendix A).

It comes rule by rule, and as one pass, `clean`:

  consent     leaves out records whose consent is false
  duplicates  keeps one of each class of near-duplicate prompts (see `dedup`)
  cap         keeps at most 200 prompts of a user, or of an organisation (section 3.2 says the one,
              A.2 the other)
  split       makes train, valid and test by user, so that "the validation and test sets contain no
              data from users whose data is in the training set"; where no user is named, by the
              first message of the chat
  pii         takes personal data out of the training split (see `pii`)
  length      leaves out prompts over 1k tokens; longer responses are cut by the stages (appendix C)

Hashes of users and prompts with a seed decide everything. The order of the records changes
nothing, and new users move nobody to another split. What the paper does not say is a field of
`Hygiene`, with a default of ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from instructjax.data.curation import dedup, pii
from instructjax.data.curation.contents import (
  first_message,
  group_of,
  lengths,
  prompt_text,
  rewritten,
)
from instructjax.data.records import records
from instructjax.data.records.records import Comparison, Demonstration, FewShot, Labelled
from instructjax.data.tokens.tokenizers import Tokenizer
from instructjax.errors import UserError

SPLITS = ("train", "valid", "test")
GROUPS = ("user", "organisation")
# The settings that take one of a few words.
CHOICES = {
  "group": GROUPS,
  "pii": ("drop", "mask", "off"),
  "missing_consent": ("keep", "drop"),
  "long_responses": ("keep", "drop"),
}


@dataclasses.dataclass(frozen=True)
class Hygiene:
  """The settings of `clean`.

  Raises:
    UserError: if a value is out of its range.
  """

  prefix: int = dedup.PREFIX  # characters that make near-duplicates; 0: no such rule
  cap: int = 200  # prompts of one user or organisation; 0: no such rule
  group: str = "user"  # or organisation: then the user where there is none
  valid: float = 0.1  # share of the users
  test: float = 0.1
  pii: str = "drop"  # the record; or mask the spans; or off
  missing_consent: str = "keep"  # or drop: records that do not say
  # With the tokenizer's beginning of text, as the stages count; 0: no such rule.
  prompt_tokens: int = 1024
  response_tokens: int = 1024  # with the end of text; 0: no such rule
  long_responses: str = "keep"  # the stages cut them; or drop the record
  seed: int = 0

  def __post_init__(self):
    for name in ("prefix", "cap", "prompt_tokens", "response_tokens"):
      value = getattr(self, name)
      if value < 0:
        raise UserError(f"{name} {value}: give a positive number, or 0 for no such rule")
    # Written so that NaN is refused too.
    if self.valid < 0 or self.test < 0 or not self.valid + self.test <= 1:
      raise UserError(
        f"valid {self.valid}, test {self.test}: give shares of the users from 0 to 1, together at "
        "most 1"
      )
    for name, allowed in CHOICES.items():
      value = getattr(self, name)
      if value not in allowed:
        raise UserError(f"{name} {value!r}: known are {', '.join(allowed)}")


class Rule(NamedTuple):
  """What one rule did to the records."""

  rule: str  # its name
  before: int  # records
  removed: int
  note: str = ""


class Cleaned(NamedTuple):
  """The records of each split, what each rule removed, and the personal data that was there.

  `pii` maps the kind of personal data to (spans, records that hold some).
  """

  splits: dict[str, list]
  rules: list[Rule]
  pii: dict[str, tuple[int, int]]


def number(*parts: str) -> int:
  """Returns 64 bits of a hash of the parts, of which only the last may hold a slash."""
  # A new hash would move users to other splits, so this one never changes.
  content = "/".join(parts).encode()
  digest = hashlib.blake2b(content, digest_size=8).digest()
  return int.from_bytes(digest, "big")


# --- the rules ---


def consented(rows: Sequence[Labelled], missing: str = "keep") -> list[Labelled]:
  """Returns the records without those whose consent is false.

  A record that does not say stays unless `missing` is "drop".
  """
  rows_to_keep = []
  for row in rows:
    consent = row.consent
    if consent is None:
      consent = missing == "keep"
    if consent:
      rows_to_keep.append(row)
  return rows_to_keep


def deduplicated(
  rows: Sequence[Labelled],
  prefix: int = dedup.PREFIX,
  seed: int = 0,
) -> list[Labelled]:
  """Returns one prompt of each class of near-duplicates, chosen by hash, in the order of the rows.

  What several people wrote for one and the same prompt is no duplicate. Of demonstrations and
  comparisons every different record of the chosen prompt stays. Neither are the later turns of a
  chat, which share its beginning: with the chosen prompt, every prompt that goes on from the same
  first message stays.
  """
  places_to_keep: list[int] = []
  for places in dedup.classes(map(prompt_text, rows), prefix):
    if len(places) > 1:
      places = _choose_among(rows, places, seed)
    places_to_keep += places
  return [rows[place] for place in sorted(places_to_keep)]


def _choose_among(
  rows: Sequence[Labelled],
  places: Sequence[int],
  seed: int,
) -> list[int]:
  """Returns the places that stay of a class of near-duplicates."""
  # The hash is of the record and not of its place, so that the order of the rows does not matter.
  marks = {place: records.fingerprint([rows[place]]) for place in places}

  def order(place: int) -> int:
    return number("duplicate", str(seed), marks[place])

  chosen = min(places, key=order)
  message = first_message(rows[chosen])
  place_of_mark: dict[str, int] = {}
  # In the order of the hashes: of equal texts the chosen one comes first, if it is among them.
  for place in sorted(places, key=order):
    if first_message(rows[place]) != message:
      continue
    mark = marks[place]
    if not isinstance(rows[place], Demonstration | Comparison):
      # Of prompts one is enough, whoever wrote it.
      mark = prompt_text(rows[place])
    place_of_mark.setdefault(mark, place)
  return list(place_of_mark.values())


def capped(
  rows: Sequence[Labelled],
  cap: int = 200,
  group: str = "user",
  seed: int = 0,
) -> list[Labelled]:
  """Returns at most `cap` different prompts of each user or organisation, chosen by hash.

  Rows that name nobody all stay.
  """
  prompts_of: dict[str, set[str]] = defaultdict(set)
  for row in rows:
    name = group_of(row, group)
    if name is not None:
      prompts_of[name].add(prompt_text(row))

  def order(text: str) -> tuple[int, str]:
    return number("cap", str(seed), text), text

  for name, texts in prompts_of.items():
    if len(texts) > cap:
      prompts_of[name] = set(sorted(texts, key=order)[:cap])
  rows_to_keep = []
  for row in rows:
    name = group_of(row, group)
    if name is None or prompt_text(row) in prompts_of[name]:
      rows_to_keep.append(row)
  return rows_to_keep


def owners(rows: Sequence[Labelled], group: str = "user") -> list[str]:
  """Returns the name of what each record belongs to: records of one owner are never parted.

  An owner is a user, or an organisation where `group` says so. Who names neither belongs to the
  first message of the chat, with near-duplicates of it. A `group` of a record, such as the tree of
  a chat, ties all of its records together, whosever they are.
  """
  names_of_rows = [_names(row, group) for row in rows]
  # What is tied together points to the name that comes first in the alphabet, in several steps
  # perhaps, so that the order of the rows does not matter.
  parent: dict[str, str] = {}

  def first_of(name: str) -> str:
    while parent.setdefault(name, name) != name:
      parent[name] = parent[parent[name]]  # half as far the next time
      name = parent[name]
    return name

  for names in names_of_rows:
    for name in names[1:]:
      first, second = sorted((first_of(names[0]), first_of(name)))
      parent[second] = first
  return [first_of(names[0]) for names in names_of_rows]


def _names(record: Labelled, group: str) -> list[str]:
  """Returns the names of everything that a record must stay with."""
  owner = group_of(record, group)
  if owner is None:
    owner = f"prompt:{dedup.key(first_message(record))}"
  return [owner] if record.group is None else [owner, f"group:{record.group}"]


def split_of(record: Labelled, settings: Hygiene) -> str:
  """Returns the split of a record that nothing but its owner ties to others."""
  return _split_of_owner(owners([record], settings.group)[0], settings)


def _split_of_owner(owner: str, settings: Hygiene) -> str:
  # A number from 0 to 1. Test comes first, so that more validation takes from training alone.
  position = number("split", str(settings.seed), owner) / 2**64
  if position < settings.test:
    return "test"
  if position < settings.test + settings.valid:
    return "valid"
  return "train"


def held_out(rows: Sequence[Labelled], share: float, seed: int = 0) -> list[bool]:
  """Returns whether each record is held out: as `divided` makes a `valid` split of this share."""
  settings = Hygiene(valid=share, test=0, seed=seed)
  return [_split_of_owner(owner, settings) == "valid" for owner in owners(rows)]


def shared(rows: Sequence[Labelled], others: Sequence[Labelled]) -> int:
  """Returns how many records begin as one of the others does, or belong to a group of theirs.

  Two chats begin alike where their first messages are the same, but for white space and upper case.
  """
  messages = {dedup.normal(first_message(other)) for other in others}
  groups = {other.group for other in others} - {None}
  return sum(dedup.normal(first_message(row)) in messages or row.group in groups for row in rows)


def divided(rows: Sequence[Labelled], settings: Hygiene) -> dict[str, list]:
  """Returns the rows of each split.

  Raises:
    UserError: if different organisations put a user into two splits.
  """
  splits: dict[str, list] = {name: [] for name in SPLITS}
  split_of_user: dict[str, str] = {}
  for row, owner in zip(rows, owners(rows, settings.group), strict=True):
    name = _split_of_owner(owner, settings)
    splits[name].append(row)
    if row.user is None:
      continue
    first = split_of_user.setdefault(row.user, name)
    if first != name:
      raise UserError(
        f"user {row.user!r} is in the splits {first} and {name}: its records name different "
        "organisations or none; give each user one organisation, or split by user (--group=user)"
      )
  return splits


def without_pii(
  rows: Sequence[Labelled],
  action: str = "drop",
  detectors: Mapping[str, pii.Detector] = pii.DETECTORS,
  show: Callable[[int], None] = lambda done: None,
) -> tuple[list[Labelled], dict[str, tuple[int, int]]]:
  """Drops the records with personal data, or masks the data in them.

  `show` is called after each record with how many are done. Returns (rows, {kind: (spans, records
  that hold some)}).
  """
  clean_rows: list[Labelled] = []
  spans_of_kind = Counter[str]()
  records_of_kind = Counter[str]()
  for done, row in enumerate(rows, 1):
    masked, spans = _masked(row, detectors)
    show(done)
    kinds = [span.kind for span in spans]
    spans_of_kind.update(kinds)
    records_of_kind.update(set(kinds))
    if not spans or (action == "mask" and _inputs_differ(masked)):
      clean_rows.append(masked)
  counts = {}
  for kind in detectors:
    if spans_of_kind[kind]:
      counts[kind] = spans_of_kind[kind], records_of_kind[kind]
  return clean_rows, counts


def _masked(
  row: Labelled,
  detectors: Mapping[str, pii.Detector],
) -> tuple[Labelled, list[pii.Span]]:
  """Returns the record with its personal data masked, and the spans in all of its texts."""
  spans: list[pii.Span] = []

  def mask(text: str) -> str:
    spans_of_text = pii.find(text, detectors)
    spans.extend(spans_of_text)
    return pii.mask(text, spans_of_text)

  return rewritten(row, mask), spans


def _inputs_differ(record: Labelled) -> bool:
  """Returns False for a few_shot record in which masking made two inputs the same."""
  if not isinstance(record, FewShot):
    return True
  inputs = {pair["input"] for pair in record.pairs}
  return len(inputs) == len(record.pairs)


# --- all of them ---


def clean(
  rows: Sequence[Labelled],
  settings: Hygiene,
  tokenizer: Tokenizer | None = None,
  detectors: Mapping[str, pii.Detector] = pii.DETECTORS,
  show: Callable[[int], None] = lambda done: None,
) -> Cleaned:
  """Applies every rule in the paper's order.

  `show` is called with how many records were searched for personal data, which takes longest.
  Without a tokenizer there is no rule of length, and the list of rules says so.
  """
  rules: list[Rule] = []
  rows = _apply_consent(rows, settings, rules)
  if settings.prefix:
    rows = _apply_duplicates(rows, settings, rules)
  if settings.cap:
    rows = _apply_cap(rows, settings, rules)
  splits = divided(rows, settings)
  pii_counts: dict[str, tuple[int, int]] = {}
  # Only what a model is trained on could teach it personal data.
  if settings.pii != "off":
    before = splits["train"]
    splits["train"], pii_counts = without_pii(before, settings.pii, detectors, show)
    spans = ", ".join(f"{kind} {count}" for kind, (count, _) in pii_counts.items())
    note = f"{settings.pii}: {spans or 'nothing found'}"
    rules.append(_rule("PII, train", before, splits["train"], note))
  if tokenizer is None:
    total = sum(map(len, splits.values()))
    note = "not applied: lengths are in tokens, and no tokenizer was given"
    rules.append(Rule("length", total, 0, note))
  else:
    splits = _apply_lengths(splits, settings, tokenizer, rules)
  return Cleaned(splits, rules, pii_counts)


def _rule(
  name: str,
  before: Sequence,
  after: Sequence,
  note: str,
) -> Rule:
  removed = len(before) - len(after)
  return Rule(name, len(before), removed, note)


def _apply_consent(
  rows: Sequence[Labelled],
  settings: Hygiene,
  rules: list[Rule],
) -> list[Labelled]:
  refused = sum(row.consent is False for row in rows)
  unknown = sum(row.consent is None for row in rows)
  treatment = "kept" if settings.missing_consent == "keep" else "dropped"
  note = f"{refused} refused, {unknown} do not say ({treatment})"
  after = consented(rows, settings.missing_consent)
  rules.append(_rule("consent", rows, after, note))
  return after


def _apply_duplicates(
  rows: Sequence[Labelled],
  settings: Hygiene,
  rules: list[Rule],
) -> list[Labelled]:
  note = f"first {settings.prefix} characters"
  # The largest class shows which template or example prompt most duplicates come from.
  keys = [dedup.key(prompt_text(row), settings.prefix) for row in rows]
  sizes = Counter(keys)
  if sizes:
    text, most = sizes.most_common(1)[0]
    if most > 1:
      note += f"; {most} begin {text[:40]!r}"
  after = deduplicated(rows, settings.prefix, settings.seed)
  rules.append(_rule("near-duplicates", rows, after, note))
  return after


def _apply_cap(
  rows: Sequence[Labelled],
  settings: Hygiene,
  rules: list[Rule],
) -> list[Labelled]:
  nobody = sum(group_of(row, settings.group) is None for row in rows)
  note = f"{settings.cap} prompts a {settings.group}; {nobody} records name nobody"
  after = capped(rows, settings.cap, settings.group, settings.seed)
  rules.append(_rule(f"cap per {settings.group}", rows, after, note))
  return after


def _apply_lengths(
  splits: dict[str, list],
  settings: Hygiene,
  tokenizer: Tokenizer,
  rules: list[Rule],
) -> dict[str, list]:
  """Returns the splits without what is too long, and adds two rules."""
  prompt_limit = settings.prompt_tokens or math.inf
  response_limit = settings.response_tokens or math.inf
  drop_responses = settings.long_responses == "drop"
  before = sum(map(len, splits.values()))
  long_prompts = 0
  long_responses = 0  # of the records whose prompt is not too long
  splits_after: dict[str, list] = {}
  for name, rows in splits.items():
    splits_after[name] = []
    for row in rows:
      prompt, response = lengths(row, tokenizer)
      if prompt > prompt_limit:
        long_prompts += 1
        continue
      if response > response_limit:
        long_responses += 1
        if drop_responses:
          continue
      splits_after[name].append(row)
  prompt_note = f"over {settings.prompt_tokens or 'no limit of'} tokens"
  rules.append(Rule("prompt length", before, long_prompts, prompt_note))
  response_note = f"{long_responses} over {settings.response_tokens or 'no limit of'} tokens"
  if not drop_responses:
    response_note += ", kept: the stages cut them"
  dropped = long_responses if drop_responses else 0
  rules.append(Rule("response length", before - long_prompts, dropped, response_note))
  return splits_after


def report(cleaned: Cleaned, settings: Hygiene) -> dict[str, Any]:
  """Returns what `clean` did, for report.json."""
  pii_counts = {}
  for kind, (spans, holding) in cleaned.pii.items():
    pii_counts[kind] = {"spans": spans, "records": holding}
  splits = {}
  for name, rows in cleaned.splits.items():
    users = {row.user for row in rows if row.user is not None}
    splits[name] = {
      "records": len(rows),
      "users": len(users),
      "sha256": records.fingerprint(rows),
    }
  return {
    "settings": dataclasses.asdict(settings),
    "rules": [rule._asdict() for rule in cleaned.rules],
    "pii": pii_counts,
    "splits": splits,
  }
