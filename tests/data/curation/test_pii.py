"""Personal data: every detector on what it must find and must leave alone, check digits, masks."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructjax.data.curation import pii

KEY = (
  "AK" + "IA" + "ABCDEFGHIJKLMNOP"
)  # in parts, so that no scanner of secrets takes this file for a leak
TOKEN = "gh" + "p_" + "a1" * 18
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIB\nabc=\n-----END RSA " + "PRIVATE KEY-----"


def test_luhn_by_hand():
  # 7992739871x, doubled every second digit from the right: the published example needs x = 3
  assert [x for x in range(10) if pii.luhn(f"7992739871{x}")] == [3]
  assert pii.luhn("4111111111111111") and not pii.luhn("4111111111111112")
  assert not pii.luhn("1411111111111111")  # 1 and 4 swapped


def test_mod97_by_hand():
  # GB82WEST12345698765432 -> 3214282912345698765432161182 = 97 q + 1 (the standard's own example)
  assert 3214282912345698765432161182 % 97 == 1
  assert pii.mod97("GB82WEST12345698765432")
  assert not pii.mod97("GB82WEST12345698765423")


FOUND = [
  ("email", "mail a.b+c@mail.example.co.uk, please", "a.b+c@mail.example.co.uk"),
  ("email", "<x@y.org>", "x@y.org"),
  ("phone", "call (415) 555-2671 now", "(415) 555-2671"),
  ("phone", "415-555-2671", "415-555-2671"),
  ("phone", "+1 415-555-2671.", "+1 415-555-2671"),
  ("phone", "ring +44 20 7946 0958", "+44 20 7946 0958"),
  ("phone", "+49 (0)30 901820", "+49 (0)30 901820"),
  ("credit_card", "card 4111 1111 1111 1111 exp", "4111 1111 1111 1111"),
  ("credit_card", "4111-1111-1111-1111 12/26", "4111-1111-1111-1111"),
  (
    "credit_card",
    "4111 1111 1111 1111 12 26",
    "4111 1111 1111 1111",
  ),  # digits that follow do not hide it
  ("credit_card", "12 4111 1111 1111 1111", "4111 1111 1111 1111"),
  ("credit_card", "378282246310005", "378282246310005"),
  ("iban", "IBAN DE89 3704 0044 0532 0130 00 OK", "DE89 3704 0044 0532 0130 00"),
  ("iban", "GB82WEST12345698765432.", "GB82WEST12345698765432"),
  ("iban", "NO93 8601 1117 947", "NO93 8601 1117 947"),
  ("ssn", "ssn 219-09-9999", "219-09-9999"),
  ("ssn", "219 09 9999", "219 09 9999"),
  ("ip_address", "from 8.8.8.8.", "8.8.8.8"),
  ("ip_address", "at 2001:4860:4860::8888, port", "2001:4860:4860::8888"),
  ("street_address", "at 10 Downing Street, London", "10 Downing Street"),
  ("street_address", "350 5th Avenue", "350 5th Avenue"),
  ("street_address", "12 N. Old Mill Rd is", "12 N. Old Mill Rd"),
  ("street_address", "in der Hauptstraße 5a wohnt", "Hauptstraße 5a"),
  ("secret", f"key {KEY}.", KEY),
  ("secret", TOKEN, TOKEN),
  ("secret", f"a\n{PEM}\nb", PEM),
  ("secret", "password: hunter2hunter2", "hunter2hunter2"),
  ("secret", "export API_KEY='abc123def456'", "abc123def456"),
]


@pytest.mark.parametrize(
  ("kind", "text", "part"), FOUND, ids=[f"{kind}-{i}" for i, (kind, _, _) in enumerate(FOUND)]
)
def test_what_is_found(kind, text, part):
  (span,) = pii.find(text)
  assert (span.kind, text[span.start : span.end]) == (kind, part)
  assert pii.mask(text, [span]) == text.replace(part, f"[{kind.upper()}]")


@pytest.mark.parametrize(
  "text",
  [
    "a @ b.c, @name, user@localhost, x@y",
    "in 1969-07-20, 2,345,678 people, 3.14159265358979, 20-30-40",
    "ISBN 978-3-16-148410-0, order 123-456-7890123",
    "115-555-2671 and 415-155-2671: no North American number begins with 1",
    "+1 2 3, 1 + 1234567, phone 4155552671",
    "4111 1111 1111 1112 fails the check; 0000 0000 0000 0000 has no issuer",
    "41111111111111111111111111 is too long, x4111111111111111 and 4111111111111111x are something "
    "else",
    "DE89 3704 0044 0532 0130 01 fails the check, ZZ89370400440532013000 is no country, "
    "DE8937040044053201300 is short",
    "000-12-3456, 666-12-3456, 900-12-3456, 219-00-9999, 219-09-0000, 1219-09-9999",
    "127.0.0.1, 192.168.1.20, 10.0.0.1, 256.1.1.1, 0.0.0.0, version 8.8.8.8.8",
    "std::vector, a::b, ::1, fe80::1, 12:30:45, 2001:db8::1, 01:23:45:67:89:ab",
    "I have 5 street dogs and 3 Good Ideas, Street 12",
    "my password is secret, token = tokenizer.encode(text), password: correct",
    "Write 100 words about 2020 and the year 1999 in 3 parts.",
  ],
)
def test_what_is_left_alone(text):
  assert pii.find(text) == []


def test_overlapping_spans_give_the_earlier_and_longer_one():
  detectors = {
    "a": lambda text: [(2, 5)],
    "b": lambda text: [(0, 3), (5, 7)],
    "c": lambda text: [(0, 4)],
  }
  assert pii.find("0123456789", detectors) == [("c", 0, 4), ("b", 5, 7)]
  assert pii.mask("0123456789", pii.find("0123456789", detectors)) == "[C]4[B]789"


def test_a_detector_of_ones_own():
  badge = lambda text: [spans.span() for spans in re.finditer(r"\bB-\d{4}\b", text)]
  spans = pii.find("badge B-1234, x@y.org", pii.DETECTORS | {"badge": badge})
  assert [span.kind for span in spans] == ["badge", "email"]


@given(st.text() | st.text("01 -.:@+aAZ/_\n"))
@settings(deadline=None, max_examples=150)
def test_spans_are_in_order_and_masking_leaves_the_rest(text):
  spans = pii.find(text)
  ends = [0, *(at for span in spans for at in (span.start, span.end)), len(text)]
  assert ends == sorted(ends)
  assert all(span.start < span.end for span in spans)
  rest = "".join(text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
  masked = pii.mask(text, spans)
  assert len(masked) == len(rest) + sum(len(span.kind) + 2 for span in spans)


PIECES = ["1 ", "4 ", "1", "a.", "a@", "+1 ", "1-", "A1 ", "Aa ", "1.", "a:", "eyJ-", "password: "]
PIECES += ["4111 ", "1111-", "-----BEGIN PRIVATE KEY-----"]


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_makes_a_detector_slow(piece):
  text = piece * (20_000 // len(piece))
  start = time.process_time()
  pii.find(text)
  assert time.process_time() - start < 2  # most take a hundredth of that
