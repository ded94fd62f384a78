"""Models on four meshes against one device, and what the mesh refuses."""

import dataclasses
import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding

from instructjax import packs, sharding
from instructjax.errors import UserError
from instructjax.models import llama

LMS = {"gpt": tiny.lm("gpt"), "llama": tiny.lm("llama", tied=False)}
VALID = np.arange(9) >= np.array([[0], [3], [5], [1], [0], [0], [7], [2]])
TOKENS = np.where(VALID, np.random.default_rng(0).integers(0, tiny.VOCAB, VALID.shape), 0).astype(
  np.int32
)


def everything(lm, params, tokens, valid):
  """Hidden states, logits, the gradient of a loss, and hidden states by decoding in a loop."""

  def loss(params):
    hidden = lm.hidden(params, tokens, valid)
    logits = lm.logits(params, hidden)
    mass = jax.nn.logsumexp(sharding.reshard(logits, "batch", None, None), -1)
    return (mass * (valid > 0)).sum(), (hidden, logits)

  grads, (hidden, logits) = jax.grad(loss, has_aux=True)(params)
  layers = lm.unstack(params)
  first, cache = lm.decode(layers, tokens[:, :5], valid[:, :5], lm.init_cache(len(tokens), 9))

  def body(carry):
    t, cache, out = carry
    cut = partial(jax.lax.dynamic_slice, start_indices=(0, t), slice_sizes=(len(tokens), 1))
    step, cache = lm.decode(layers, cut(tokens), cut(valid), cache)
    return t + 1, cache, jax.lax.dynamic_update_slice(out, step, (0, t, 0))

  out = jnp.concatenate([first, jnp.zeros_like(first[:, :4])], 1)
  *_, decoded = jax.lax.while_loop(lambda c: c[0] < 9, body, (jnp.int32(5), cache, out))
  return hidden, logits, grads, decoded


@cache
def reference(family):
  def run():
    lm = LMS[family]
    params = tiny.perturb(lm.init(jax.random.key(0)), 0.1)
    out = jax.jit(partial(everything, lm))(params, jnp.asarray(TOKENS), jnp.asarray(VALID))
    return jax.tree.map(np.asarray, (params, out))

  return tiny.unsharded(run)


ON_MESHES = [
  ((8, 1, 1), "llama"),
  ((1, 8, 1), "llama"),
  ((2, 2, 2), "llama"),
  ((1, 2, 4), "llama"),
  ((2, 2, 2), "gpt"),
  ((1, 8, 1, None, 4), "llama"),  # fsdp laid as two axes
  ((2, 4, 1, None, 2), "gpt"),
]


@pytest.mark.parametrize(("mesh", "family"), ON_MESHES, indirect=["mesh"], ids=str)
def test_a_sharded_model_equals_one_device(mesh, family):
  lm = LMS[family]
  host, (hidden, logits, grads, decoded) = reference(family)
  params = sharding.place(host, sharding.shardings(lm.table))
  got = jax.jit(partial(everything, lm))(
    params, sharding.place_batch(TOKENS), sharding.place_batch(VALID)
  )
  real = VALID[..., None]
  np.testing.assert_allclose(got[0] * real, hidden * real, atol=1e-4)
  np.testing.assert_allclose(got[1] * real, logits * real, atol=1e-4)
  np.testing.assert_allclose(got[3] * real, hidden * real, atol=1e-4)
  np.testing.assert_allclose(decoded * real, hidden * real, atol=1e-5)
  tiny.assert_trees_close(got[2], grads, rtol=1e-3, atol=1e-4)
  jax.tree.map(
    lambda g, p: np.testing.assert_equal(str(jax.typeof(g).sharding), str(jax.typeof(p).sharding)),
    got[2],
    params,
  )


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 4)], indirect=True, ids=str)
@pytest.mark.parametrize("width", [8, 9])  # nine tokens do not divide: they stay whole
def test_a_split_sequence_changes_no_number(mesh, width):
  """Between blocks the stream lies along `model` too, so a device keeps a part of it for the
  backward pass.
  """
  config = llama.LlamaConfig(
    vocab_size=48, context=64, width=32, depth=2, heads=4, kv_heads=2, mlp=64, remat="blocks"
  )
  plain, split = llama.llama(config), llama.llama(dataclasses.replace(config, sequence=True))
  host = tiny.unsharded(lambda: jax.tree.map(np.asarray, plain.init(jax.random.key(0))))

  def run(lm, params, tokens, valid):
    loss = lambda params: (
      jnp.where(valid[..., None], lm.hidden(params, tokens, valid), 0) ** 3
    ).sum()
    return jax.value_and_grad(loss)(params)

  rows = TOKENS[:, :width], VALID[:, :width]
  expected = tiny.unsharded(
    lambda: jax.jit(partial(run, plain))(jax.tree.map(jnp.asarray, host), *map(jnp.asarray, rows))
  )
  expected = jax.tree.map(np.asarray, expected)
  params = sharding.place(host, sharding.shardings(split.table))
  placed = [sharding.place_batch(x) for x in rows]
  got = jax.jit(partial(run, split))(params, *placed)
  tiny.assert_trees_close(jax.tree.map(np.asarray, got), expected, rtol=1e-3, atol=1e-4)
  kept = [
    str(var.aval)
    for eqn in jax.make_jaxpr(partial(run, split))(params, *placed).jaxpr.eqns
    if eqn.primitive.name == "scan"
    for var in eqn.outvars
    if var.aval.shape == (2, 8, width, 32)
  ]
  assert kept
  assert all((f"{width}@model" in aval) == (width == 8) for aval in kept)


def test_parameters_are_stored_in_parts():
  """On 2 x 4, each device holds an eighth of every matrix but those whose axes the mesh does not
  divide.
  """
  lm = LMS["llama"]
  with jax.set_mesh(sharding.make_mesh(1, 2, 4)):
    params = sharding.place(lm.init(jax.random.key(0)), sharding.shardings(lm.table))
    share = jax.tree.map(lambda x: x.size // x.addressable_shards[0].data.size, params)
  assert share["blocks"]["q"]["w"] == share["blocks"]["down"]["w"] == share["embed"]["tokens"] == 8
  assert share["blocks"]["k"]["w"] == 2  # two key heads on four devices are whole
  assert share["norm"]["scale"] == 1


def test_an_odd_vocabulary_is_kept_whole_and_an_odd_width_is_refused():
  with jax.set_mesh(sharding.make_mesh(1, 2, 4)):
    assert sharding.fit((50_257, 768), ("vocab", "embed")) == jax.P(None, "fsdp")
    assert sharding.fit((50_260, 768), ("vocab", "embed")) == jax.P("model", "fsdp")
    with pytest.raises(
      UserError, match=r"'heads' of length 6 .*does not divide over 4 devices \(model=4\)"
    ):
      sharding.fit((32, 6, 8), ("embed", "heads", None))
    with pytest.raises(UserError, match=r"'batch' of length 7 .*2 devices \(data=1 x fsdp=2\)"):
      sharding.place_batch(np.zeros((7, 3)))


def test_a_mesh_needs_its_devices():
  with pytest.raises(UserError, match=r"data=4 fsdp=4 model=1 needs 16 devices and 8 are there"):
    sharding.make_mesh(4, 4, 1)
  with pytest.raises(UserError, match="positive"):
    sharding.make_mesh(0, 1, 1)


def test_batches_are_split_by_rows(mesh):
  rows = sharding.place_batch({"tokens": np.arange(16).reshape(8, 2), "stem": np.zeros((8, 2, 3))})
  parts = mesh.shape["data"] * mesh.shape["fsdp"]
  assert rows["tokens"].addressable_shards[0].data.shape == (8 // parts, 2)
  assert rows["stem"].sharding.is_equivalent_to(NamedSharding(mesh, jax.P(("data", "fsdp"))), 3)
  np.testing.assert_array_equal(rows["tokens"], np.arange(16).reshape(8, 2))


def test_without_a_mesh_every_helper_is_the_identity():
  x = jnp.arange(6.0).reshape(2, 3)
  assert not sharding.is_sharded()
  assert sharding.spec("batch", None) is None
  assert sharding.fit((7, 3), ("batch", None)) is None
  assert sharding.place(x, None) is x
  assert sharding.place_batch(x) is sharding.replicate(x) is sharding.reshard(x, "batch", None) is x
  assert sharding.gather(x) is x


def test_copies_of_a_row_follow_each_other():
  x = jnp.array([[1, 2], [3, 4]])
  np.testing.assert_array_equal(sharding.repeat(x, 2), [[1, 2], [1, 2], [3, 4], [3, 4]])


def test_rows_of_a_cache_are_repeated_taken_and_put_where_they_are():
  """What has no rows stays; what has them on no single axis is refused."""

  def init(rows):
    return {
      "k": jnp.zeros((rows, 3)),
      "blocks": jnp.zeros((2, rows, 3)),
      "next": jnp.zeros((), jnp.int32),
    }

  axes = sharding.row_axes(init, 2)
  assert axes == {"k": 0, "blocks": 1, "next": -1}
  numbered = jnp.arange(2.0)[:, None]
  cache = {
    "k": init(2)["k"] + numbered,
    "blocks": init(2)["blocks"] + numbered,
    "next": jnp.int32(1),
  }
  repeated = sharding.repeat_rows(cache, axes, 2)
  np.testing.assert_array_equal(repeated["k"][:, 0], [0, 0, 1, 1])
  np.testing.assert_array_equal(repeated["blocks"][1, :, 0], [0, 0, 1, 1])
  assert repeated["next"] == 1
  swapped = sharding.take_rows(cache, axes, jnp.array([1, 0]))
  np.testing.assert_array_equal(swapped["blocks"][0, :, 0], [1, 0])

  group = {"k": jnp.full((2, 2), 7.0), "blocks": jnp.full((1, 2, 3), 7.0), "next": jnp.int32(5)}
  after = sharding.put_rows(cache, axes, group, jnp.array([2, 0]))  # there is no row 2
  np.testing.assert_array_equal(after["k"], [[7, 7, 0], [1, 1, 1]])
  np.testing.assert_array_equal(after["blocks"][:, :, 0], [[7, 1], [0, 1]])
  assert after["next"] == 1

  for rows_nowhere in [
    lambda rows: jnp.zeros((rows, rows)),
    lambda rows: jnp.zeros(max(rows, 4)),  # filled up for few rows
    lambda rows: jnp.zeros(2 * rows),
  ]:
    with pytest.raises(UserError, match="one axis must be that of the rows"):
      sharding.row_axes(rows_nowhere, 2)


def test_on_a_mesh_a_cache_is_split_along_its_rows():
  with jax.set_mesh(sharding.make_mesh(2, 1, 1)):
    split = jax.P(("data", "fsdp"), None)
    assert sharding.row_axes(lambda rows: jnp.zeros((rows, 3), out_sharding=split), 2) == 0
    with pytest.raises(UserError, match="on a mesh rows must be the first axis"):
      sharding.row_axes(lambda rows: jnp.zeros((3, rows)), 2)


def test_what_is_gathered_and_what_is_moved_lies_where_it_should():
  """A parameter becomes whole along fsdp alone; a batch is split by its rows."""
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    weight = sharding.place(np.zeros((4, 4)), jax.P("fsdp", "model"))
    assert jax.typeof(sharding.gather(weight)).sharding.spec == jax.P(None, "model")
    rows = sharding.reshard(sharding.replicate(np.zeros((4, 2))), "batch", None)
    assert jax.typeof(rows).sharding.spec == jax.P(("data", "fsdp"), None)
    whole = sharding.replicate(np.zeros((4, 2)))
    assert whole.sharding.is_fully_replicated
    # One process holds all rows, whatever the number of its devices.
    assert sharding.local_rows(8) == list(range(8))


def test_a_mesh_may_leave_devices_alone():
  assert sharding.make_mesh(2, 1, 1).devices.ravel().tolist() == jax.devices()[:2]


@dataclasses.dataclass(frozen=True)
class Device:
  """Stands in for a device of a pod: what says where it is."""

  id: int
  device_kind: str
  platform: str = "tpu"
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0
  slice_index: int = 0
  process_index: int = 0


def tpus(kind: str, sides: tuple[int, int, int], slices: int = 1, cores: int = 1) -> list[Device]:
  """The TPUs of some slices, in the order in which JAX lists those of one host."""
  x, y, z = (range(side) for side in sides)
  places = itertools.product(range(slices), z, y, x, range(cores))
  return [
    Device(number, kind, coords=(x, y, z), core_on_chip=core, slice_index=part)
    for number, (part, z, y, x, core) in enumerate(places)
  ]


def every_shape(devices: int) -> list[tuple[int, int, int]]:
  divisors = [n for n in range(1, devices + 1) if devices % n == 0]
  return [
    (data, fsdp, devices // data // fsdp)
    for data, fsdp in itertools.product(divisors, repeat=2)
    if devices % (data * fsdp) == 0
  ]


@pytest.mark.parametrize(
  ("kind", "sides", "cores", "count"),
  [
    ("TPU v6 lite", (4, 4, 1), 1, 15),
    ("TPU v5 lite", (4, 8, 1), 1, 21),
    ("TPU v5", (4, 4, 4), 1, 28),
    ("TPU v4", (4, 4, 28), 1, 84),  # of which JAX 0.10 does not find all factors
    ("TPU7x", (2, 2, 2), 2, 15),
  ],
)
def test_a_slice_of_tpus_takes_every_mesh(kind, sides, cores, count):
  """`jax.make_mesh` lets axes share a side of the topology on v5e alone."""
  devices = tpus(kind, sides, cores=cores)
  shapes = every_shape(len(devices))
  assert len(shapes) == count
  for shape in shapes:
    grid = sharding.make_mesh(*shape, devices=devices).devices
    assert math.prod(grid.shape) == math.prod(shape) and set(grid.flat) == set(devices)


@pytest.mark.parametrize(
  ("kind", "sides", "mesh", "laid"),
  [
    ("TPU v5 lite", (4, 4, 1), (1, 16, 1), (1, 4, 4, 1)),
    ("TPU v6 lite", (8, 8, 1), (1, 64, 1), (1, 8, 8, 1)),
    ("TPU v5", (4, 4, 4), (1, 64, 1), (1, 16, 4, 1)),
    ("TPU v5", (2, 2, 4), (1, 16, 1), (1, 4, 4, 1)),
    ("TPU v5", (4, 4, 8), (1, 128, 1), (1, 16, 8, 1)),
    # Where one axis has its reduce-scatter, it stays one.
    ("TPU v5 lite", (4, 8, 1), (1, 32, 1), (1, 32, 1)),
    ("TPU v5 lite", (2, 2, 1), (1, 4, 1), (1, 4, 1)),
    ("TPU v5", (4, 4, 4), (1, 16, 4), (1, 16, 4)),
    ("TPU v5", (4, 4, 4), (2, 32, 1), (2, 32, 1)),
    ("TPU7x", (2, 2, 2), (1, 16, 1), (1, 16, 1)),
  ],
)
def test_fsdp_over_a_whole_topology_is_laid_as_two_axes(kind, sides, mesh, laid):
  """A user writes one; each of the two lies along links of its own."""
  made = sharding.make_mesh(*mesh, devices=tpus(kind, sides, cores=1 + (kind == "TPU7x")))
  assert made.devices.shape == laid
  assert made.axis_names == (sharding.AXES if len(laid) == 3 else sharding.WITH_INNER)
  if len(laid) == 4 and min(sides[:2]) > 2:
    # Neighbours along the inner axis differ in one coordinate alone.
    for row in made.devices.reshape(-1, laid[2]):
      places = np.array([device.coords for device in row])
      assert (np.ptp(places, axis=0) > 0).sum() == 1


def test_slices_along_fsdp_leave_it_one_axis():
  """The first of two axes would carry more of a gradient over the network between the slices."""
  devices = tpus("TPU v6 lite", (4, 4, 1), slices=2)
  assert sharding.make_mesh(1, 32, 1, devices=devices).devices.shape == (1, 32, 1)
  along_data = sharding.make_mesh(2, 16, 1, devices=devices).devices
  assert along_data.shape == (2, 4, 4, 1)
  slices = np.vectorize(lambda device: device.slice_index)(along_data)
  assert (slices[0] == 0).all() and (slices[1] == 1).all()


def test_two_axes_of_fsdp_are_one_for_whoever_reads_the_mesh():
  with jax.set_mesh(sharding.make_mesh(2, 4, 1, inner=2)):
    assert sharding.sizes_of_mesh() == {"data": 2, "fsdp": 4, "model": 1}
    assert sharding.batch_shards() == 8
    assert sharding.fit((8, 3), ("embed", None)) == jax.P(("fsdp", "fsdp2"), None)
    with pytest.raises(UserError, match=r"'batch' of length 7 .*8 devices \(data=2 x fsdp=4\)"):
      sharding.place_batch(np.zeros((7, 3)))
    weight = sharding.place(np.zeros((4, 4)), jax.P(("fsdp", "fsdp2"), None))
    assert jax.typeof(sharding.gather(weight)).sharding.spec == jax.P(None, None)
    rows = sharding.place_batch(np.arange(16).reshape(8, 2))
    assert sharding.local_rows(8) == list(range(8))
    np.testing.assert_array_equal(rows.addressable_shards[0].data, [[0, 1]])


@pytest.mark.parametrize("inner", [0, 2])
def test_a_gradient_is_summed_axis_by_axis(inner):
  """What each of eight devices has added up lands in the parts in which the parameter lies."""
  with jax.set_mesh(sharding.make_mesh(2, 4, 1, inner=inner)):
    stored = sharding.spec(None, "embed")
    rows = sharding.place_batch(np.arange(48.0).reshape(8, 6))
    columns = sharding.place_batch(np.arange(64.0).reshape(8, 8))

    def summed(rows, columns):
      own = sharding.unreduced(jax.P(None, None), jax.typeof(rows).sharding.spec[0])
      product = jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), out_sharding=own)
      return sharding.scatter(product, stored)

    result = jax.jit(summed)(rows, columns)
    assert jax.typeof(result).sharding.spec == stored
    expected = np.arange(48.0).reshape(8, 6).T @ np.arange(64.0).reshape(8, 8)
    np.testing.assert_array_equal(result, expected)


def test_slices_lie_along_the_outermost_axis_that_they_divide():
  devices = tpus("TPU v6 lite", (4, 4, 1), slices=2)

  def slices_of(shape):
    grid = sharding.make_mesh(*shape, devices=devices).devices
    assert set(grid.flat) == set(devices)
    return np.vectorize(lambda device: device.slice_index)(grid)

  along_data = slices_of((4, 4, 2))
  assert (along_data[:2] == 0).all() and (along_data[2:] == 1).all()
  along_fsdp = slices_of((1, 8, 4))
  assert (along_fsdp[:, :4] == 0).all() and (along_fsdp[:, 4:] == 1).all()
  with pytest.raises(
    UserError,
    match="mesh data=1 fsdp=1 model=32 takes all 32 of 32 TPU devices in 2 slices, which lie along "
    "data or fsdp: choose a multiple of 2 for one of these",
  ):
    slices_of((1, 1, 32))


def test_a_part_of_the_tpus_is_a_box_or_refused():
  host = tpus("TPU v6 lite", (2, 4, 1))
  assert set(sharding.make_mesh(2, 1, 2, devices=host).devices.flat) == set(host[:4])
  with pytest.raises(
    UserError,
    match="mesh data=7 fsdp=1 model=1 takes the first 7 of 8 TPU devices, which are no box of the "
    "topology: choose three numbers whose product is 6",
  ):
    sharding.make_mesh(7, 1, 1, devices=host)
  with pytest.raises(UserError, match=r"which are 8 and 4 of 2 slices: .* product is 8"):
    sharding.make_mesh(1, 12, 1, devices=tpus("TPU v6 lite", (2, 4, 1), slices=2))


def test_gpus_stand_host_after_host():
  """With a process for each GPU, JAX may list those of two hosts in turn, each host a slice."""
  devices = [
    Device(number, "NVIDIA H100 80GB HBM3", "gpu", slice_index=number // 4)
    for number in (0, 4, 1, 5, 2, 6, 3, 7)
  ]
  for shape in every_shape(8):
    grid = sharding.make_mesh(*shape, devices=devices).devices
    assert [device.id for device in grid.flat] == list(range(8))


def test_cpus_keep_their_order():
  order = [jax.devices()[number] for number in (3, 0, 7, 4)]
  assert sharding.make_mesh(2, 1, 2, devices=order).devices.ravel().tolist() == order


def test_an_accelerator_computes_more_positions_at_once():
  """A plan of a topology that is not compiled for has a mesh without devices."""
  planned = jax.sharding.AbstractMesh(
    (2, 4, 1), sharding.AXES, (jax.sharding.AxisType.Explicit,) * 3
  )
  assert sharding.positions_at_once() == sharding.POSITIONS_OF_CPU
  assert sharding.positions_at_once(learnt=False) == sharding.SCORED_POSITIONS_OF_CPU
  with jax.set_mesh(sharding.make_mesh(fsdp=8)):
    assert sharding.positions_at_once() == sharding.POSITIONS_OF_CPU
  with jax.sharding.use_abstract_mesh(planned):
    assert sharding.positions_at_once() == sharding.POSITIONS
    assert sharding.positions_at_once(learnt=False) == sharding.POSITIONS
    assert packs.rows_at_once(64, 256) == 8
    assert packs.rows_at_once(64, 4096) == 1
