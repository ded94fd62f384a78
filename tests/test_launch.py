"""The launch files of experiments/: they parse, a dry run prints what would run, and their
`instructjax` commands are real.
"""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from instructjax import settings
from instructjax.commands import cli
from instructjax.settings.subjects import MeshSettings

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "experiments").rglob("*.sh"))
STAGES = {
  "DATA": "data",
  "RUNS": "runs",
  "SIZE": "1.3b",
  "REWARD_SIZE": "6b",
  "MESH": "data=1,fsdp=8,model=2",
  "POLICY_BASE": "models/policy",
  "REWARD_BASE": "models/reward",
}


def dry(script: str, *words: str, **variables: str) -> list[str]:
  """The lines that a dry run prints."""
  env = os.environ | {"DRY_RUN": "1"} | variables
  command = ["bash", str(ROOT / "experiments" / script), *words]
  return subprocess.run(
    command, env=env, check=True, capture_output=True, text=True, timeout=60
  ).stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  assert script.name == "settings.sh" or os.access(script, os.X_OK)


def test_the_stages_are_commands_that_instructjax_knows():
  lines = dry("tpu/stages.sh", DISTRIBUTED="1", **STAGES)
  assert [shlex.split(line)[1] for line in lines] == ["sft", "rl_init", "sft", "reward", "ppo"]
  workdirs = []
  for line in lines:
    words = shlex.split(line)[1:]
    args, rest = cli.parser(cli.all_commands(), words).parse_known_args(words)
    config = settings.override(settings.load(args.config), settings.assignments(rest))
    assert config.stage == args.command
    assert config.mesh == MeshSettings(data=1, fsdp=8, model=2)
    assert args.distributed
    workdirs.append(args.workdir)
  assert len(set(workdirs)) == 5
  assert shlex.split(lines[4])[3:5] == ["--model=runs/rl_init", "--config.reward_model=runs/reward"]
  assert shlex.split(lines[3])[3] == f"--model={workdirs[2]}"


def test_a_finished_stage_is_passed_over(tmp_path):
  (tmp_path / "sft" / "checkpoints" / "final").mkdir(parents=True)
  lines = dry("tpu/stages.sh", **STAGES | {"RUNS": str(tmp_path)})
  assert [shlex.split(line)[1] for line in lines] == ["rl_init", "sft", "reward", "ppo"]


def test_a_preempted_stage_is_started_again_and_a_failed_one_is_not(tmp_path):
  """A stand-in for the command: preempted twice, then done; `reward` fails for good."""
  fake = tmp_path / "instructjax"
  fake.write_text(
    '#!/usr/bin/env bash\necho "$1" >> "$LOG"\n[ "$1" = reward ] && exit 2\n'
    '[ "$(grep -c "^$1$" "$LOG")" -lt 3 ] && exit 143\nexit 0\n'
  )
  fake.chmod(0o755)
  log = tmp_path / "log"
  env = (
    os.environ
    | STAGES
    | {"RUNS": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
  )
  done = subprocess.run(
    ["bash", str(ROOT / "experiments/tpu/stages.sh")], env=env, check=False, timeout=60
  )
  assert done.returncode == 2
  assert log.read_text().split() == ["sft"] * 3 + ["rl_init"] * 3 + ["sft", "reward"]


@pytest.mark.parametrize("action", ["create", "start", "watch", "logs", "report", "delete"])
def test_pod_prints_its_commands(action):
  lines = dry("tpu/pod.sh", action, NAME="mine", PROJECT="p", ZONE="z-a", TYPE="v5p-8")
  assert lines
  assert all(shlex.split(line)[0] == "gcloud" for line in lines)
  if action == "create":
    assert "--accelerator-type=v5p-8" in lines[0] and "--spot" in lines[0]
  if action == "start":
    (remote,) = (word for word in shlex.split(lines[1]) if word.startswith("--command="))
    words = shlex.split(remote.removeprefix("--command="))
    assert words[-2:] == ["bash", "worker.sh"]
    assert {"NAME=mine", "MESH=data=1,fsdp=64,model=1"} <= set(words)


@pytest.mark.parametrize("codes, ends, starts", [([143, 1, 0], 0, 3), ([1, 2], 2, 2)])
def test_watching_starts_again_but_for_an_error_that_one_can_mend(tmp_path, codes, ends, starts):
  log = tmp_path / "log"
  gcloud = f"""#!/usr/bin/env bash
case "$*" in
  *describe*) echo ACTIVE ;;
  *--command=*)
    echo start >> {log}
    codes=({" ".join(map(str, codes))})
    exit "${{codes[$(($(wc -l < {log}) - 1))]}}" ;;
esac
"""
  for name, text in (("gcloud", gcloud), ("sleep", "#!/usr/bin/env bash\n")):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  env = os.environ | STAGES | {"NAME": "mine", "PROJECT": "p", "ZONE": "z-a", "TYPE": "v5p-8"}
  env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": "0"}
  watch = ["bash", str(ROOT / "experiments/tpu/pod.sh"), "watch"]
  done = subprocess.run(watch, env=env, check=False, timeout=60, capture_output=True, text=True)
  assert done.returncode == ends, done.stderr
  assert log.read_text().split() == ["start"] * starts


@pytest.mark.parametrize("action", ["image", "cluster", "start", "logs", "delete"])
def test_xpk_prints_its_commands(action):
  lines = dry("tpu/xpk.sh", action, NAME="mine")
  assert {shlex.split(line)[0] for line in lines} <= {"xpk", "docker", "kubectl"}
  assert lines


def test_the_image_copies_what_there_is():
  for line in (ROOT / "experiments/tpu/Dockerfile").read_text().splitlines():
    if line.startswith("COPY"):
      assert all((ROOT / name).exists() for name in line.split()[1:-1])


def test_an_unknown_action_says_which_there_are():
  found = subprocess.run(
    ["bash", str(ROOT / "experiments/tpu/pod.sh"), "fly"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 2
  assert "create" in found.stderr and "watch" in found.stderr


def test_the_tables_of_planned_presets_are_those_of_the_file():
  """Every row of experiments/tpu/README.md beside its report, and the commands that make it; all of
  them fit.
  """
  folder = ROOT / "experiments/tpu"
  reports = [json.loads(line) for line in (folder / "plans.jsonl").read_text().splitlines()]
  text = (folder / "README.md").read_text()
  rows = [
    line.split(" | ") for line in text.splitlines() if re.match(r"\| (sft|reward|ppo) ", line)
  ]
  commands = [line for line in text.splitlines() if line.startswith("instructjax plan")]
  assert commands == [report["command"] for report in reports]
  scripted = [
    line for line in (folder / "presets.sh").read_text().splitlines() if line.startswith("plan --")
  ]
  assert scripted == [line.removeprefix("instructjax ") for line in commands]
  for report, row in zip(reports, rows, strict=True):
    programs = report["programs"]
    peaks = ", ".join(f"{one['program']} {one['compiled']['peak'] / 1e9:.1f}" for one in programs)
    limit = programs[0]["compiled"]["limit"] / 1e9
    assert row[0].startswith(f"| {report['stage']} {report['model'].partition(',')[0]}")
    assert report["topology"] in row[1]
    numbers = [
      f"{peaks} (of {limit:.1f})",
      "yes",
      f"{report['hours']:.2f}",
      f"{report['chip_hours']:,.0f}",
    ]
    assert row[2:] == [*numbers[:-1], f"{numbers[-1]} |"]
    assert report["fits"] and report["compiled"]
