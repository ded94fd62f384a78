"""A run that is killed and started again ends where an uninterrupted one does, bit for bit."""

import shutil
import signal
from pathlib import Path

import chain
import numpy as np
import processes
import pytest
from processes import ended
from stage_runs import leaves, metrics

PLANS = [
  "pretrain:write:3",
  "final:commit:5",
  "sft:step:2",
  "rl_init:commit:3",
  "reward:line:2",
  "ppo:step:2",
  "ppo:write:3",
  "ppo:committed:4",
  "ppo:term:5",
  "",
]


@pytest.fixture(scope="module")
def launch(data):
  """Starts `chain.py`."""
  return lambda folder, plan="", *more: processes.start(chain, data, folder, plan, *more)


@pytest.fixture(scope="module")
def together(data):
  """Runs `chain.py` in two processes, each with its plan, and returns how they ended."""
  return lambda folder, plans, size: processes.together(
    chain, *((data, folder, plan, size) for plan in plans)
  )


@pytest.mark.slow  # ten launches of a process, about 90 s
def test_killed_anywhere_it_ends_where_it_would_have(launch, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  assert ended(launch(whole))[0] == 0
  for plan in PLANS:
    code, _, err = ended(launch(parts, plan))
    expected = 0 if not plan else 128 + signal.SIGTERM if ":term:" in plan else -signal.SIGKILL
    assert code == expected, f"{plan}: {code}\n{err[-3000:]}"
    assert "Traceback" not in err, plan
    if ":term:" in plan:
      assert "ppo: stopped at step 5 of 6; run the same command again to go on from there" in err
  for stage in chain.STAGES:
    same(whole / stage, parts / stage, stage)


def same(whole: Path, parts: Path, stage: str) -> None:
  """The same metrics, the same checkpoints kept, the same arrays in the last one and in
  what is left.
  """
  rows = metrics(whole)
  assert metrics(parts) == rows
  steps = [row["step"] for row in rows if not any(name.startswith("eval/") for name in row)]
  assert steps == list(range(1, len(steps) + 1))
  names = lambda folder: sorted(
    str(path.relative_to(folder)) for path in (folder / "checkpoints").glob("*/*")
  )
  assert names(whole) == names(parts)
  for kind in (stage, "final"):
    expected = leaves(whole, kind)
    arrays = leaves(parts, kind)
    assert arrays.keys() == expected.keys()
    for name in expected:
      np.testing.assert_array_equal(arrays[name], expected[name], err_msg=f"{stage} {kind} {name}")
  if stage == "ppo":
    assert leaves(whole, stage)["kl_coef"] != np.float32(0.02)
    assert any(name.startswith("ema/") for name in leaves(whole, stage))


@pytest.mark.slow
def test_two_processes_do_what_one_does(launch, together, tmp_path):
  """All stages on 2 x 2 x 2 devices, four in each process, killed on the way and started again: the
  losses of one process.
  """
  one, two = tmp_path / "one", tmp_path / "two"

  code, _, err = ended(launch(one, "", "wide"))
  assert code == 0, err
  # The first one to end takes the other along: it may be told by the coordinator before its own
  # trap.
  assert -signal.SIGKILL in [code for code, _, _ in together(two, ["reward:step:2"] * 2, "wide")]
  ends = together(two, ["", ""], "wide")
  assert [code for code, _, _ in ends] == [0, 0], ends
  assert "> say 2" in ends[0][1]
  assert "say" not in ends[1][1]
  for stage in (*chain.STAGES, "bestofn"):
    rows = [metrics(folder / stage) for folder in (one, two)]
    for alone, shared in zip(*rows, strict=True):
      assert alone.keys() == shared.keys()
      for name in alone:
        if name.startswith(("loss", "eval/nll", "objective/", "step")):
          assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-4), f"{stage} {name}"
    if stage in chain.STAGES:
      last = max((two / stage / "checkpoints" / stage).iterdir())
      assert {path.name for path in (last / "state").glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
      }
  samples = [(folder / "sample" / "samples.jsonl").read_text() for folder in (one, two)]
  assert samples[0].count("\n") == samples[1].count("\n") == 3


@pytest.mark.release
def test_ppo_in_two_processes_of_which_one_is_killed(together, init_run, reward_run, tmp_path):
  """The other process ends by itself; started again, both go on bit for bit.  First the one that
  does not write is killed, within an iteration, then the one that writes, within a checkpoint.
  Before that one gets SIGTERM, and both stop at the same part of an iteration.
  """
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  for folder in (whole, parts):
    for run in (init_run, reward_run):
      shutil.copytree(run, folder / run.name)
  assert [code for code, _, _ in together(whole, ["", ""], "ppo")] == [0, 0]
  ends = together(parts, ["", "ppo:term:1"], "ppo")
  assert [code for code, _, _ in ends] == [128 + signal.SIGTERM] * 2, ends
  assert all("ppo: stopped at step 1 of 3" in err for _, _, err in ends), ends
  for plans in (["", "ppo:step:2"], ["ppo:write:2", ""]):
    ends = together(parts, plans, "ppo")
    killed = plans.index(max(plans))
    assert ends[killed][0] == -signal.SIGKILL, ends[killed]
    assert ends[1 - killed][0] not in (0, None), ends[1 - killed]
    assert not (parts / "ppo" / "checkpoints" / "final").exists()
  assert [code for code, _, _ in together(parts, ["", ""], "ppo")] == [0, 0]
  same(whole / "ppo", parts / "ppo", "ppo")
