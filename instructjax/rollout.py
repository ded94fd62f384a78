"""Sampling: a loop over slots, which take the next prompt when their row has ended.

Responses differ in length, and a loop over whole batches would run until the longest of them is
finished, with few of its rows alive. So the batch is a queue. S slots are filled with the first
prompts, read in groups; each step samples one token in every slot; and when enough rows have ended,
the next group takes their slots. When the queue is empty, the rows that are left move together into
half as many slots, and again. All of this is one compiled program.

What a row samples depends on its own key alone, never on its neighbours, the number of slots or the
mesh. The sampled distribution is the one that is scored: `losses.temper` shapes the logits in this
file as it does in the trainer.

All slots write into one column of the cache at a time, in turn (`models.cache` says how rows that
began at different times are kept apart): the columns from the prompts' on are a ring of R, which no
response can lap.

On a mesh every device of the batch has a queue and slots of its own, and no row leaves its device.

Dimensions: B prompts, n rows of each, P prompt tokens (left padded), R response tokens, T = P + R,
S slots, G prompts of a group, V vocabulary. The vocabulary is cut into N blocks of BLOCK ids.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructjax import losses, returns, sharding
from instructjax.errors import UserError
from instructjax.models import cache
from instructjax.types import (
  LM,
  Array,
  Bool,
  Cache,
  Float,
  Int,
  Key,
  Params,
  Prompts,
  PyTree,
  Rollout,
  Scalar,
)

# Ids in a block of the two-level search of `categorical`; about the root of a vocabulary.
BLOCK = 256

# Slots of a device: a quarter of its rows, but at least so many, where nothing else is asked for.
# Fewer would read the weights more often, more would wait longer for the last rows.
LEAST_SLOTS = 64
# A group of prompts fills a sixteenth of the slots, but has so many tokens in a part that is read.
GROUPS = 16
GROUP_TOKENS = 32
FIRST_GROUPS = 4  # the groups, where nothing is ever refilled
STORED = ("float", "int8")  # how weights and cache may be stored
CHUNKS = 16  # a prompt of full length is read in so many parts, of 8 columns or a multiple


@dataclass(frozen=True)
class Sampling:
  """How to sample.  `eos` are all the ids that end a response, `banned` the ids that are never
  drawn (PAD among them).

  temperature 0 is greedy.  top_k 0 and top_p 1 leave the distribution whole, as PPO needs: its
  ratios and its KL are of whole distributions, and what is cut away is never tried, so that
  nothing can teach the policy to say it.

  `slots` are the responses that are sampled at a time (0 chooses), and `halvings` how often the
  last of them move into half as many; both change the speed alone.  `whole` gathers the weights
  along fsdp once, and else a layer at a time.

  With `weights` or `cache` "int8" the model that samples is a rounded copy (`models.int8`), and so
  are the log-probabilities that it reports.

  Raises UserError unless top_k >= 0, 0 < top_p <= 1, and `weights` and `cache` are in STORED.
  """

  response: int
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  eos: tuple[int, ...] = ()
  banned: tuple[int, ...] = ()
  n: int = 1  # responses of each prompt, which is read once for all of them
  # False where the weights do not fit whole along fsdp: gathered a layer at a time, in every step
  whole: bool = True
  weights: str = "float"  # of matrices: as they are, or "int8", made once a rollout
  cache: str = "float"  # of keys and values: in the compute dtype, or "int8"
  # rows that are sampled at a time, on all devices; 0 is a quarter of the rows of each device, and
  # at least LEAST_SLOTS on each
  slots: int = 0
  # how often the last rows move together into half as many slots; each time is a loop to compile
  halvings: int = 3

  def __post_init__(self):
    if self.top_k < 0 or not 0 < self.top_p <= 1:
      raise UserError(
        f"top_k={self.top_k}, top_p={self.top_p}: top_k is a number of tokens (0 keeps all), top_p "
        "a share above 0 and up to 1 "
        "(1 keeps all)"
      )
    for name, stored in (("weights", self.weights), ("cache", self.cache)):
      if stored not in STORED:
        raise UserError(f"{name} is {stored!r}: choose one of {', '.join(STORED)}")

  @property
  def is_rounded(self) -> bool:
    """Whether another model samples than the one that is scored: one rounded to integers."""
    return "int8" in (self.weights, self.cache)


def truncate(
  logits: Float[Array, "B V"],
  top_k: int,
  top_p: float,
) -> Float[Array, "B V"]:
  """Sets all but the likeliest tokens to -inf.

  The `top_k` likeliest tokens stay (Fan et al. 2018), and of these the smallest set that holds mass
  `top_p` (Holtzman et al. 2020). Tokens that are as likely as the last one to stay, stay too. With
  top_k 0 and top_p 1 nothing is sorted. Else a vocabulary that is split over devices is gathered.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    >>> print(jax.nn.softmax(rollout.truncate(logits, top_k=2, top_p=1.0)))
    [[0.625 0.375 0.   ]]
  """
  if vocabulary_axis(logits) is not None and (top_k or top_p < 1):
    logits = sharding.reshard(logits, "batch", None)
  if top_k:
    k = min(top_k, logits.shape[-1])
    largest, _ = jax.lax.top_k(logits, k)
    kth = largest[:, -1:]  # [B, 1]: the smallest logit that stays
    logits = jnp.where(logits < kth, -jnp.inf, logits)
  if top_p < 1:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    mass = jax.nn.softmax(ordered)
    # A token belongs to the set when the mass before it is not enough yet.
    before = jnp.cumsum(mass, axis=-1) - mass
    in_set = jnp.where(before < top_p, ordered, jnp.inf)
    last = jnp.min(in_set, axis=-1, keepdims=True)
    logits = jnp.where(logits < last, -jnp.inf, logits)
  return logits


def first_above(
  mass: Float[Array, "B N"],
  u: Float[Array, " B"],
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Returns the first index at which the cumulative mass exceeds u, and the rest of u there.

  The rest is u less the mass before the index. u is held below the total, so that an index without
  mass is never returned.
  """
  total = jnp.cumsum(mass, axis=-1)
  just_below_total = jnp.nextafter(total[:, -1], jnp.zeros_like(u))
  u = jnp.minimum(u, just_below_total)
  index = jnp.argmax(total > u[:, None], axis=-1)
  before = jnp.take_along_axis(total - mass, index[:, None], axis=-1)
  return index, jnp.maximum(u - before[:, 0], 0.0)


def vocabulary_axis(logits: Float[Array, "B V"]) -> str | None:
  """Returns the axis of the mesh over which the vocabulary is split; None where it is whole."""
  partition = sharding.partition(logits)
  return None if partition is None else partition[-1]


def categorical(
  u: Float[Array, " B"],
  logits: Float[Array, "B V"],
) -> Int[Array, " B"]:
  """Returns the sample of softmax(logits) that a uniform number u in [0, 1) stands for.

  This is an inverse CDF in two levels: the block, then the id within. It takes one number a row and
  one pass over the vocabulary. Gumbel noise would take a random number for every id.

  A vocabulary that is split over devices stays where it is. What they exchange is the mass of each
  block, so that all of them choose the same one; the device that has it searches within.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    >>> print(rollout.categorical(jnp.array([0.4, 0.9]), logits))
    [0 2]
  """
  axis = vocabulary_axis(logits)
  search = partial(_search, axis=axis)
  if axis is None:
    return search(u, logits)
  return sharding.on_each_device(search, sharding.partition(u), u, logits)


def _search(
  u: Float[Array, " B"],
  logits: Float[Array, "B V"],
  axis: str | None,
) -> Int[Array, " B"]:
  """Returns the samples, where logits are those of this device's part of the vocabulary.

  The parts lie along `axis` of the mesh; None means that this part is all of it.
  """
  rows, vocab_size = logits.shape
  top = jnp.max(logits, axis=-1, keepdims=True)
  if axis is not None:
    top = jax.lax.pmax(top, axis)
  mass = jnp.exp(logits - top)
  # The padding of the last block has no mass, so it is never chosen.
  padding = -vocab_size % BLOCK
  mass = jnp.pad(mass, ((0, 0), (0, padding)))
  mass = mass.reshape(rows, -1, BLOCK)
  own_mass = mass.sum(-1)
  part = 0
  block_mass = own_mass
  if axis is not None:
    part = jax.lax.axis_index(axis)
    block_mass = jax.lax.all_gather(own_mass, axis, axis=1, tiled=True)
  # The mass is not normalised, so u runs up to its total.
  u = u * block_mass.sum(-1)
  block, u = first_above(block_mass, u)
  # The rest of u searches within the block.
  own_block = block - part * own_mass.shape[1]
  is_here = (own_block >= 0) & (own_block < own_mass.shape[1])
  place = jnp.where(is_here, own_block, 0)
  mass_within = jnp.take_along_axis(mass, place[:, None, None], axis=1)
  within, _ = first_above(mass_within[:, 0], u)
  token = (part * vocab_size + place * BLOCK + within).astype(jnp.int32)
  if axis is None:
    return token
  return jax.lax.psum(jnp.where(is_here, token, 0), axis)


def likeliest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
  """Returns the likeliest token of each row, the first of those that are equally likely.

  Where the vocabulary is split over devices, each of them names the likeliest of its part.
  """
  axis = vocabulary_axis(logits)
  if axis is None:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)

  def on_device(logits: Array) -> Array:
    vocab_size = logits.shape[-1]
    own_top = jnp.max(logits, axis=-1)
    own = jnp.argmax(logits, axis=-1) + jax.lax.axis_index(axis) * vocab_size
    is_top = own_top == jax.lax.pmax(own_top, axis)
    beyond = jnp.iinfo(jnp.int32).max
    return jax.lax.pmin(jnp.where(is_top, own, beyond).astype(jnp.int32), axis)

  return sharding.on_each_device(on_device, sharding.spec("batch"), logits)


def draw(
  u: Float[Array, " B"],
  logits: Float[Array, "B V"],
  cfg: Sampling,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
  """Returns a token and its log-probability under the distribution that it was sampled from.

  Greedy decoding (temperature 0) has no such distribution and reports that of temperature 1.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))
    >>> greedy = rollout.Sampling(response=1, temperature=0)
    >>> token, logp = rollout.draw(jnp.array([0.4, 0.9]), logits, greedy)
    >>> print(token, logp)
    [0 0] [-0.693 -0.693]
  """
  if cfg.temperature == 0:
    logits = losses.temper(logits, 1.0, cfg.banned)
    token = likeliest(logits)
  else:
    logits = losses.temper(logits, cfg.temperature, cfg.banned)
    logits = truncate(logits, cfg.top_k, cfg.top_p)
    token = categorical(u, logits)
  return token, losses.token_logp(logits, token)


def uniforms(
  key: Key[Array, ""],
  row: Int[Array, " B"],
  t: Int[Array, " B"],
) -> Float[Array, " B"]:
  """Returns a uniform number for token t of each row, of the key, the row and t alone."""

  def uniform(key: Array, row: Array, t: Array) -> Array:
    own_key = jax.random.fold_in(jax.random.fold_in(key, row), t)
    return jax.random.uniform(own_key, (), jnp.float32)

  of_rows = jax.vmap(uniform, in_axes=(None, 0, 0))
  return sharding.on_each_device(of_rows, sharding.partition(row), key, row, t)


def is_end(token: Int[Array, " B"], eos: tuple[int, ...]) -> Array:
  """Whether each token is one of the end-of-text ids.

  Example:
    >>> print(rollout.is_end(jnp.array([3, 7]), eos=(7,)))
    [False  True]
  """
  if not eos:
    return jnp.zeros_like(token, bool)
  return jnp.isin(token, jnp.asarray(eos, jnp.int32))


def _check_prompts(prompts: Prompts) -> None:
  """Checks that prompts are padded on the left; raises as `sample` says."""
  valid = prompts.valid
  if valid.dtype != bool:
    raise TypeError(f"valid is boolean, this is {valid.dtype}: valid > 0 makes it so")
  if isinstance(valid, jax.core.Tracer):
    return
  # Within a trace, indexing an array that is no part of it would trace all the same.
  rows = np.flatnonzero(~np.asarray(valid)[:, -1])
  if len(rows):
    raise ValueError(
      f"{len(rows)} of {len(valid)} prompts end in padding, the first is row {rows[0]}: prompts "
      "are padded on the left (pipeline.pad_prompts)"
    )


# --- slots ---


class Shape(NamedTuple):
  """The numbers of a loop: of rows and prompts on one device of the batch, and of columns."""

  prompts: int  # in the queue
  slots: int
  group: int  # prompts that are read together
  chunk: int  # columns of a prompt that are read at once
  prompt: int  # columns of a prompt, a multiple of the chunk
  response: int  # columns of the ring
  block: int  # columns of a block of the cache


def shape_of(cfg: Sampling, prompts: int, length: int) -> Shape:
  """Returns the numbers for `prompts` prompts of `length` columns on all devices."""
  shards = sharding.batch_shards()
  rows = prompts * cfg.n // shards
  slots = -(-cfg.slots // shards) if cfg.slots else max(LEAST_SLOTS, rows // 4)
  slots = min(slots, rows)
  slots = max(slots, cfg.n)  # the rows of a prompt begin together
  part = -(-length // CHUNKS)
  chunk = 8 * -(-part // 8)
  # Where every row has a slot from the start, none waits for a group to be complete.
  group = slots // (GROUPS if slots < rows else FIRST_GROUPS)
  group = min(max(group, GROUP_TOKENS // chunk), slots)
  return Shape(
    prompts=prompts // shards,
    slots=slots,
    group=max(group // cfg.n, 1),
    chunk=chunk,
    prompt=chunk * -(-length // chunk),
    response=cfg.response,
    block=cache.block_width(length + cfg.response),
  )


def sizes_of(slots: int, halvings: int) -> list[int]:
  """Returns the numbers of slots in which the rows of a device are sampled, and 0 at the end."""
  sizes = [slots]
  while len(sizes) <= halvings and sizes[-1] >= 8:
    sizes.append(sizes[-1] // 2)
  return [*sizes, 0]


class Rows(NamedTuple):
  """What slots continue: a row each.

  `row` counts the rows of the device; `number` counts all of them, which is what a row's noise
  depends on.
  """

  row: Int[Array, " S"]
  number: Int[Array, " S"]
  last: Int[Array, " S"]  # the token that was sampled last, which the model reads next
  t: Int[Array, " S"]  # tokens of the response so far
  live: Bool[Array, " S"]


class Written(NamedTuple):
  """The responses of all rows; NOT_SAMPLED and 0 where nothing was sampled."""

  tokens: Int[Array, "B R"]
  logp: Float[Array, "B R"]


class Slots(NamedTuple):
  """What the loop carries."""

  cache: Cache
  rows: Rows
  written: Written
  next: Int[Array, " D"]  # the first prompt of each device that is still in the queue
  step: Int[Array, ""]
  computed: Float[Array, ""]  # positions, padding included


NOT_SAMPLED = -1


class Sampler(NamedTuple):
  """The parts of a loop: the model, the prompts in their order and the settings."""

  lm: LM
  layers: Params
  prompts: Prompts
  queue: Int[Array, " B"]  # the prompts of a device in the order in which they are read
  key: Key[Array, ""]
  cfg: Sampling
  shape: Shape
  axes: PyTree  # of the rows of a cache


def queue_of(prompts: Prompts) -> Int[Array, " B"]:
  """Returns the numbers of the prompts of each device, the longest first.

  Prompts of one length stand together, so that a group is read without much padding.
  """
  length = jnp.sum(prompts.valid, axis=1, dtype=jnp.int32)

  def longest_first(length: Array) -> Array:
    return jnp.argsort(-length, stable=True).astype(jnp.int32)

  return sharding.on_each_device(longest_first, sharding.partition(length), length)


def empty_slots(s: Sampler) -> Slots:
  """Returns slots that all wait for a prompt."""
  shards = sharding.batch_shards()
  rows = s.prompts.tokens.shape[0] * s.cfg.n

  def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    split = sharding.spec("batch", *[None] * (len(shape) - 1))
    return jnp.zeros(shape, dtype, out_sharding=split)

  slots = shards * s.shape.slots
  nothing = zeros((slots,), jnp.int32)
  return Slots(
    cache=init_cache(s, slots, s.shape.prompt + s.shape.response),
    rows=Rows(nothing, nothing, nothing, nothing, live=zeros((slots,), jnp.bool_)),
    written=Written(
      tokens=zeros((rows, s.cfg.response), jnp.int32) + NOT_SAMPLED,
      logp=zeros((rows, s.cfg.response), jnp.float32),
    ),
    next=jnp.zeros(shards, jnp.int32, out_sharding=sharding.spec("batch")),
    step=jnp.int32(0),
    computed=jnp.float32(0),
  )


def init_cache(s: Sampler, rows: int, length: int) -> Cache:
  """Returns an empty cache whose blocks are those of all caches of this loop."""
  return s.lm.init_cache(rows, length, s.shape.block, s.cfg.cache == "int8")


# --- a token ---


def choose(
  s: Sampler,
  rows: Rows,
  written: Written,
  hidden: Float[Array, "S D"],
) -> tuple[Rows, Written]:
  """Samples the next token of every row from its hidden state, and writes it down."""
  logits = s.lm.logits(s.layers, hidden)
  # Where the vocabulary is split over devices, it stays so.
  vocabulary = None if vocabulary_axis(logits) is None else "vocab"
  logits = sharding.reshard(logits, "batch", vocabulary)
  token, logp = draw(uniforms(s.key, rows.number, rows.t), logits, s.cfg)

  def put(buffer: Array, x: Array) -> Array:
    def put_on_device(buffer: Array, x: Array, row: Array, t: Array, live: Array) -> Array:
      # A slot without a row writes nowhere.
      place = jnp.where(live, row, buffer.shape[0])
      return buffer.at[place, t].set(x, mode="drop")

    split = sharding.partition(buffer)
    return sharding.on_each_device(put_on_device, split, buffer, x, rows.row, rows.t, rows.live)

  t = rows.t + rows.live
  ended = is_end(token, s.cfg.eos) | (t >= s.cfg.response)
  if s.prompts.ends is not None:
    ended |= t >= take(sharding.repeat(s.prompts.ends, s.cfg.n), rows.row)
  rows_after = rows._replace(last=token, t=t, live=rows.live & ~ended)
  return rows_after, Written(put(written.tokens, token), put(written.logp, logp))


def step(s: Sampler, slots: Slots) -> Slots:
  """Reads the last token of every slot and samples the next one."""
  rows = slots.rows
  column = s.shape.prompt + slots.step % s.shape.response
  cached = slots.cache | {"index": column}
  hidden, cached = s.lm.decode(s.layers, rows.last[:, None], rows.live[:, None], cached)
  rows, written = choose(s, rows, slots.written, hidden[:, -1])
  slots = slots._replace(cache=cached, rows=rows, written=written, step=slots.step + 1)
  return clear(s, count(slots, rows.live.size))


def count(slots: Slots, positions: int | Array) -> Slots:
  """Counts positions that were computed."""
  return slots._replace(computed=slots.computed + positions)


def clear(s: Sampler, slots: Slots) -> Slots:
  """Empties the columns of rows that have ended: nobody reads them any more."""
  position = slots.cache["position"]
  axis = s.axes["position"]
  shape = [1] * position.ndim
  shape[axis] = slots.rows.live.size
  split = [None] * position.ndim
  split[axis] = "batch"
  live = jax.lax.reshape(slots.rows.live, tuple(shape), out_sharding=sharding.spec(*split))
  position = jnp.where(live, position, cache.EMPTY)
  return slots._replace(cache=slots.cache | {"position": position})


# --- a group of prompts ---


def takable(s: Sampler, slots: Slots) -> Int[Array, " D"]:
  """Returns how many prompts each device can take now: there are slots and prompts for them."""

  def on_device(live: Array, next: Array) -> Array:
    free = jnp.sum(~live, dtype=jnp.int32)
    waiting = s.shape.prompts - next
    return jnp.minimum(jnp.minimum(free // s.cfg.n, s.shape.group), waiting)

  return sharding.on_each_device(on_device, sharding.spec("batch"), slots.rows.live, slots.next)


def is_due(s: Sampler, slots: Slots) -> Bool[Array, ""]:
  """Whether some device can take a whole group, or all that is left."""
  waiting = s.shape.prompts - slots.next
  whole_group = jnp.minimum(waiting, s.shape.group)
  return jnp.any((waiting > 0) & (takable(s, slots) >= whole_group))


def refill(s: Sampler, slots: Slots) -> Slots:
  """Reads the next prompts, samples the first token of their rows, and gives them free slots."""
  n = s.cfg.n
  taken = takable(s, slots)

  def assign(queue: Array, live: Array, next: Array, taken: Array) -> tuple[Array, ...]:
    # Free slots come first; those beyond the prompts that are taken get no row.
    j = jnp.arange(s.shape.group * n, dtype=jnp.int32)
    is_taken = j // n < taken
    place = jnp.minimum(next + j[: s.shape.group], s.shape.prompts - 1)
    prompt = queue[place]
    row = jnp.repeat(prompt, n) * n + j % n
    slot = jnp.argsort(live, stable=True)[: s.shape.group * n].astype(jnp.int32)
    return prompt, row, jnp.where(is_taken, slot, live.shape[0]), is_taken

  by_row = sharding.spec("batch")
  prompt, row, slot, is_taken = sharding.on_each_device(
    assign, (by_row,) * 4, s.queue, slots.rows.live, slots.next, taken
  )
  group = jax.tree.map(partial(take, numbers=prompt), s.prompts)
  hidden, cached, columns = read(s, group)
  begun = Rows(
    row=row,
    number=take(row_numbers(s), row),
    last=jnp.zeros_like(row),
    t=jnp.zeros_like(row),
    live=is_taken,
  )
  begun, written = choose(s, begun, slots.written, sharding.repeat(hidden, n))
  cached = sharding.repeat_rows(cached, s.axes, n)

  def into_slots(old: Array, new: Array) -> Array:
    def put(old: Array, new: Array, slot: Array) -> Array:
      return old.at[slot].set(new, mode="drop")

    return sharding.on_each_device(put, by_row, old, new, slot)

  slots = slots._replace(
    cache=sharding.put_rows(slots.cache, s.axes, cached, slot),
    rows=jax.tree.map(into_slots, slots.rows, begun),
    written=written,
    next=slots.next + taken,
  )
  # A response may end with its first token.
  return clear(s, count(slots, columns * group.tokens.shape[0]))


def take(x: Array, numbers: Int[Array, " M"]) -> Array:
  """Returns the rows of these numbers, which count those of the device."""
  return sharding.on_each_device(lambda x, numbers: x[numbers], sharding.partition(x), x, numbers)


def row_numbers(s: Sampler) -> Int[Array, " B"]:
  """Returns the numbers of all rows."""
  rows = s.prompts.tokens.shape[0] * s.cfg.n
  return sharding.reshard(jnp.arange(rows, dtype=jnp.int32), "batch")


def read(
  s: Sampler,
  prompts: Prompts,
) -> tuple[Float[Array, "G D"], Cache, Int[Array, ""]]:
  """Reads prompts in chunks; returns their last hidden states, a cache, and the columns read.

  Columns in which no prompt of the group has a token are not read.
  """
  rows, width = prompts.tokens.shape
  chunk, length = s.shape.chunk, s.shape.prompt
  padding = ((0, 0), (length - width, 0))
  tokens = jnp.pad(prompts.tokens, padding)
  valid = jnp.pad(prompts.valid, padding)
  cached = init_cache(s, rows, length)
  longest = jnp.max(jnp.sum(prompts.valid, axis=1, dtype=jnp.int32))
  chunks = length // chunk
  first = chunks - jnp.maximum(-(-longest // chunk), 1)

  def read_chunk(i, carry):
    _, cached = carry
    columns = partial(jax.lax.dynamic_slice_in_dim, start_index=i * chunk, slice_size=chunk, axis=1)
    cached = cached | {"index": jnp.int32(i * chunk)}
    hidden, cached = s.lm.decode(s.layers, columns(tokens), columns(valid), cached)
    return hidden[:, -1], cached

  split = sharding.spec("batch", None)
  nothing = jnp.zeros((rows, s.lm.width), jnp.float32, out_sharding=split)
  # The name is that of the loop where its trips are counted (`plan.counting`).
  with jax.named_scope("trips:chunks"):
    hidden, cached = jax.lax.fori_loop(first, chunks, read_chunk, (nothing, cached))
  return hidden, cached, (chunks - first) * chunk


# --- the loop ---


def run(s: Sampler) -> Slots:
  """Samples every row: refills and steps until the queue is empty, then ever fewer slots."""
  sizes = sizes_of(s.shape.slots, s.cfg.halvings)

  def live_at_most(slots: Slots, most: int) -> Bool[Array, ""]:
    def on_device(live: Array) -> Array:
      return jnp.sum(live, keepdims=True) <= most

    return jnp.all(sharding.on_each_device(on_device, sharding.spec("batch"), slots.rows.live))

  def is_last(slots: Slots, most: int) -> Bool[Array, ""]:
    """Whether the queue is empty and at most so many rows of each device go on."""
    return jnp.all(slots.next >= s.shape.prompts) & live_at_most(slots, most)

  def fill_and_step(slots: Slots) -> Slots:
    slots = refill(s, slots)

    def goes_on(slots: Slots):
      return ~is_due(s, slots) & ~is_last(slots, sizes[1])

    with jax.named_scope("trips:steps"):
      return jax.lax.while_loop(goes_on, partial(step, s), slots)

  # The names are those of the loops where their trips are counted (`plan.counting`).
  with jax.named_scope("trips:refills"):
    slots = jax.lax.while_loop(
      lambda slots: ~is_last(slots, sizes[1]), fill_and_step, empty_slots(s)
    )
  for size, half in itertools.pairwise(sizes[1:]):
    slots = move_together(s, slots, size)
    with jax.named_scope("trips:tail"):
      slots = jax.lax.while_loop(
        lambda slots, half=half: ~live_at_most(slots, half), partial(step, s), slots
      )
  return slots


def move_together(s: Sampler, slots: Slots, size: int) -> Slots:
  """Moves the rows that go on into the first `size` slots of each device."""

  def live_first(live: Array) -> Array:
    return jnp.argsort(~live, stable=True)[:size].astype(jnp.int32)

  chosen = sharding.on_each_device(live_first, sharding.spec("batch"), slots.rows.live)
  return slots._replace(
    cache=sharding.take_rows(slots.cache, s.axes, chosen),
    rows=jax.tree.map(partial(take, numbers=chosen), slots.rows),
  )


def useful_share(rows: Rollout, n: int = 1) -> Scalar:
  """Returns the share of the computed positions that read a token; the last of a row is never read.

  `n` rows of a prompt follow each other, and the prompt is read once for all of them.

  Raises:
    ValueError: where the rollout does not say what was computed.

  Example:
    >>> counted = rows.replace(computed=jnp.array([5.0, 5.0]))
    >>> print(f"{rollout.useful_share(counted):.1f}")  # six of ten positions
    0.6
  """
  if rows.computed is None:
    raise ValueError("the rollout has no count of computed positions: sample it, or give one")
  sampled = jnp.sum(rows.mask, dtype=jnp.float32)
  of_prompts = (jnp.sum(rows.valid, dtype=jnp.float32) - sampled) / n
  read = of_prompts + sampled - rows.mask.shape[0]
  return read / jnp.sum(rows.computed)


def sample(
  lm: LM,
  params: Params,
  prompts: Prompts,
  key: Key[Array, ""],
  cfg: Sampling,
) -> Rollout:
  """Continues every prompt by up to `cfg.response` tokens, `cfg.n` times.

  The n rows of a prompt follow each other. Tokens after the end are 0, with `valid` and `mask`
  False. Token t of row i is drawn by the key folded with i and t: a new key for each call gives new
  samples, and the same key gives the same samples, whatever the number of slots. Where
  `prompts.ends` has a schedule, a row ends after so many tokens, whatever they are: the last of
  them counts as its end of text.

  Raises:
    TypeError: unless `prompts.valid` is boolean.
    ValueError: for prompts that are padded on the right, where their values can be seen: outside of
      a compiled function. The response would follow the padding.
    UserError: where prompts and responses do not fit the context of the model.

  Example:
    >>> sampling = rollout.Sampling(response=3, eos=(7,), banned=(0,), n=2)
    >>> samples = rollout.sample(lm, params, prompts, jax.random.key(1), sampling)
    >>> print(samples.tokens.shape, samples.mask.shape)  # two rows of each prompt
    (4, 5) (4, 3)
  """
  _check_prompts(prompts)
  prompts = jax.tree.map(lambda x: sharding.reshard(x, "batch", *[None] * (x.ndim - 1)), prompts)
  B, P = prompts.tokens.shape
  cache.check_context(lm.context, P + cfg.response)
  shape = shape_of(cfg, B, P)
  shards = sharding.batch_shards()
  columns = shape.prompt + shape.response
  axes = sharding.row_axes(
    lambda rows: lm.init_cache(rows, columns, shape.block, cfg.cache == "int8"), shards
  )
  sampler = Sampler(
    lm=lm,
    layers=lm.unstack(params, whole=cfg.whole, int8_weights=cfg.weights == "int8"),
    prompts=prompts,
    queue=queue_of(prompts),
    key=key,
    cfg=cfg,
    shape=shape,
    axes=axes,
  )
  last = run(sampler)
  mask = last.written.tokens != NOT_SAMPLED
  tokens = jnp.where(mask, last.written.tokens, 0)
  length = jnp.sum(mask, axis=1, dtype=jnp.int32)
  final = jnp.sum(jnp.where(returns.at_last_token(mask), tokens, 0), axis=1)
  ended = is_end(final, cfg.eos)
  prompts = sharding.repeat(prompts, cfg.n)
  if prompts.ends is not None:
    ended |= length >= prompts.ends
  each = last.computed / mask.shape[0]
  return Rollout(
    tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
    valid=jnp.concatenate([prompts.valid, mask], axis=1),
    mask=mask,
    logp=last.written.logp,
    ended=ended,
    computed=jnp.zeros_like(last.written.logp[:, 0]) + each,
  )


# What is promised; the other functions are the parts of these.
__all__ = [
  "Sampling",
  "categorical",
  "draw",
  "is_end",
  "sample",
  "truncate",
  "useful_share",
]
