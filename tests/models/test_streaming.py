"""Loading holds little more than the parameters: measured on a model of 765 MiB, in a process of
its own.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from instructjax import models
from instructjax.models import hf
from instructjax.models.llama import LlamaConfig

CONFIG = LlamaConfig(
  vocab_size=16_000, context=64, width=1024, depth=16, heads=8, kv_heads=8, mlp=2048, tied=False
)
MEASURE = """
import sys, threading
from pathlib import Path
import jax
from instructjax import models, sharding

def anonymous():
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

folder, fsdp = sys.argv[1], int(sys.argv[2])
jax.block_until_ready(jax.numpy.zeros(8) + 1)
done, peak, before = threading.Event(), [0.0], anonymous()

def watch():
  while not done.wait(0.002):
    peak[0] = max(peak[0], anonymous())

with jax.set_mesh(sharding.make_mesh(1, fsdp, 1)):
  thread = threading.Thread(target=watch)
  thread.start()
  params = jax.block_until_ready(models.load(folder).params)
  done.set()
  thread.join()
size = sum(x.nbytes for x in jax.tree.leaves(params)) / 2**20
print(size, peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc"
)
@pytest.mark.parametrize("fsdp, dtype", [(1, "float32"), (4, "bfloat16")])
def test_loading_holds_the_parameters_and_a_few_tensors(tmp_path, monkeypatch, fsdp, dtype):
  table, rng = models.build(CONFIG).table, np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), table)
  hf.save(tmp_path, CONFIG, params, dtype=dtype)
  del params
  monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={fsdp}")
  command = [sys.executable, "-c", MEASURE, str(tmp_path), str(fsdp)]
  out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  size, peak = (float(x) for x in out.split())
  largest = 4 * 16_000 * 1024 / 2**20  # MiB, the embedding
  print(f"parameters {size:.0f} MiB, largest tensor {largest:.0f} MiB, peak {peak:.0f} MiB")
  assert size > 6 * largest
  assert peak < size + 2.5 * largest
