"""Checks where everything lies in a GGUF file, before the gguf package reads it.

The package trusts the file: a list may claim more entries than the file has bytes, and two tensors
may share theirs. Here each part must follow the one before it, as the specification of GGUF says,
and the last must end within the file.

  magic, version, number of tensors, number of keys
  each key: name, type, value
  each tensor: name, axes, type, offset
  the numbers of the tensors, each padded to a multiple of `general.alignment`
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# The bytes of a value by the number of its type.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32, TEXT, LIST = 4, 8, 9
ALIGNMENT = "general.alignment"
USUAL_ALIGNMENT = 32  # bytes
MOST_AXES = 4
DEEPEST = 4  # lists in lists
_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


class Place(NamedTuple):
  """Where a tensor lies in the part of the file that holds the numbers."""

  name: str
  start: int
  size: int  # bytes


class Cursor:
  """A place in the bytes of a file, which moves on as they are read."""

  def __init__(self, content: memoryview):
    self.content = content
    self.at = 0

  def skip(self, size: int) -> None:
    """Moves on by `size` bytes.

    Raises:
      ValueError: where the file ends before.
    """
    if size > len(self.content) - self.at:
      raise ValueError(f"it ends at byte {len(self.content)}, within a part that begins before")
    self.at += size

  def uint32(self) -> int:
    start = self.at
    self.skip(4)
    return _UINT32.unpack_from(self.content, start)[0]

  def uint64(self) -> int:
    start = self.at
    self.skip(8)
    return _UINT64.unpack_from(self.content, start)[0]

  def text(self) -> str:
    size = self.uint64()
    start = self.at
    self.skip(size)
    return bytes(self.content[start : self.at]).decode("utf-8")


def check(content: memoryview) -> None:
  """Checks the layout of a file.

  Raises:
    ValueError: where it is not as the head of this file says; the text says what is wrong.
  """
  cursor = Cursor(content)
  cursor.skip(4)
  if bytes(content[:4]) != MAGIC:
    raise ValueError("it does not begin with GGUF")
  version = cursor.uint32()
  if version not in VERSIONS:
    raise ValueError(f"its version is {version}, those that are read are 2 and 3, little-endian")
  tensor_count = cursor.uint64()
  key_count = cursor.uint64()
  alignment = USUAL_ALIGNMENT
  # A count may be wrong too, but then the file ends first: each entry takes some bytes.
  for _ in range(key_count):
    name = cursor.text()
    kind = cursor.uint32()
    start = cursor.at
    _skip_value(cursor, kind, 0)
    if name == ALIGNMENT and kind == UINT32:
      alignment = _UINT32.unpack_from(content, start)[0]
  if alignment < 1 or alignment & (alignment - 1):
    raise ValueError(f"{ALIGNMENT} is {alignment}, which is no power of two")
  places = [_place(cursor) for _ in range(tensor_count)]
  _check_places(places, _padded(cursor.at, alignment), len(content), alignment)


def _skip_value(cursor: Cursor, kind: int, depth: int) -> None:
  """Moves past a value of a kind, which lies in `depth` lists."""
  if kind in SIZES:
    cursor.skip(SIZES[kind])
  elif kind == TEXT:
    cursor.skip(cursor.uint64())
  elif kind == LIST and depth < DEEPEST:
    inner = cursor.uint32()
    count = cursor.uint64()
    if inner in SIZES:
      cursor.skip(SIZES[inner] * count)
      return
    for _ in range(count):
      _skip_value(cursor, inner, depth + 1)
  else:
    raise ValueError(f"a value at byte {cursor.at} is of type {kind} in {depth} lists")


def _place(cursor: Cursor) -> Place:
  """Returns where the next tensor of the list lies."""
  import gguf

  name = cursor.text()
  axes = cursor.uint32()
  if axes > MOST_AXES:
    raise ValueError(f"tensor '{name[:80]}' has {axes} axes, at most {MOST_AXES} are possible")
  shape = [cursor.uint64() for _ in range(axes)]
  kind = gguf.GGMLQuantizationType(cursor.uint32())
  block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
  # Quantised numbers are stored in blocks along the fastest axis, which GGUF lists first.
  if block > 1 and (not shape or shape[0] % block):
    raise ValueError(
      f"tensor '{name[:80]}' of shape {shape} does not divide into blocks of {block}"
    )
  start = cursor.uint64()
  return Place(name, start, math.prod(shape) // block * block_bytes)


def _check_places(places: list[Place], data_start: int, size: int, alignment: int) -> None:
  """Checks that tensors follow each other from `data_start` on, and end within the file."""
  end = 0
  for place in places:
    expected = _padded(end, alignment)
    if place.start != expected:
      raise ValueError(
        f"tensor '{place.name[:80]}' begins at {place.start} among the numbers, after the one "
        f"before it that is {expected}"
      )
    end = place.start + place.size
  # A file of metadata alone ends with them, without the padding.
  if places and data_start + end > size:
    raise ValueError(f"its tensors need {data_start + end} bytes, it has {size}")


def _padded(size: int, alignment: int) -> int:
  """Returns the next multiple of `alignment`."""
  return -(-size // alignment) * alignment
