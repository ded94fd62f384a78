"""The launch files of experiments/: they parse, a dry run prints what would run, and their
`instructjax` commands are real.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructjax import settings
from instructjax.commands import cli
from instructjax.plan import estimate
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


@contextlib.contextmanager
def started(command, env):
  """A program in a group of its own, which is killed where the test fails."""
  # A test that runs in the background ignores SIGINT, and so would the program.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  program = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
  signal.signal(signal.SIGINT, before)
  try:
    yield program
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(program.pid, signal.SIGKILL)
    program.wait()


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
    assert args.distributed and args.unless_finished
    workdirs.append(args.workdir)
  assert len(set(workdirs)) == 5
  assert shlex.split(lines[4])[3:5] == ["--model=runs/rl_init", "--config.reward_model=runs/reward"]
  assert shlex.split(lines[3])[3] == f"--model={workdirs[2]}"


def test_a_folder_is_no_finished_stage(tmp_path):
  """It is there before the model is written in it; whether a stage is finished, it says itself."""
  (tmp_path / "sft" / "checkpoints" / "final").mkdir(parents=True)
  lines = dry("tpu/stages.sh", **STAGES | {"RUNS": str(tmp_path)})
  assert [shlex.split(line)[1] for line in lines] == ["sft", "rl_init", "sft", "reward", "ppo"]


def stand_in(folder: Path, name: str, text: str) -> None:
  """A program of this name, in bash, for a folder that comes first in PATH."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
  (folder / name).chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
  """The environment of scripts whose stand-ins are in `folder / "bin"`."""
  path = f"{folder / 'bin'}:{os.environ['PATH']}"
  log = {"RUNS": str(folder), "LOG": str(folder / "log"), "PATH": path}
  return os.environ | STAGES | log | variables


def wait_for(path: Path, text: str) -> None:
  """Returns when a file holds a text."""
  end = time.monotonic() + 30
  while not path.is_file() or text not in path.read_text():
    assert time.monotonic() < end, f"{path} never held {text!r}"
    time.sleep(0.01)


def test_a_preempted_stage_is_started_again_and_a_failed_one_is_not(tmp_path):
  """A stand-in for the command: preempted twice, then done; `reward` fails for good."""
  stand_in(
    tmp_path / "bin",
    "instructjax",
    'echo "$1" >> "$LOG"\n[ "$1" = reward ] && exit 2\n'
    '[ "$(grep -c "^$1$" "$LOG")" -lt 3 ] && exit 143\nexit 0',
  )
  done = subprocess.run(
    ["bash", str(ROOT / "experiments/tpu/stages.sh")],
    env=environment(tmp_path),
    check=False,
    timeout=60,
  )
  assert done.returncode == 2
  assert (tmp_path / "log").read_text().split() == ["sft"] * 3 + ["rl_init"] * 3 + ["sft", "reward"]


# A stage that saves for a while when it gets SIGTERM, and then ends with the code that it is given.
SAVES = """
trap 'trap "" TERM; echo signalled >> "$LOG"; sleep 0.5; echo saved >> "$LOG"; exit "$CODE"' TERM
echo "$1" >> "$LOG"
while true; do sleep 0.05; done
"""


def as_xpk_runs_it(command: str) -> list[str]:
  """A command in a container of xpk: a subshell in the background, whose process is signalled."""
  wrapper = f"""
forward() {{ kill -TERM $!; }}
trap forward TERM
({command}) & main=$!
while kill -0 $main 2>/dev/null; do sleep 0.1; done
wait $main
exit $?
"""
  return ["bash", "-c", wrapper]


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["direct", "xpk"])
@pytest.mark.parametrize(
  ("code", "expected", "signals"), [(143, 143, 1), (143, 143, 2), (0, 143, 1), (1, 1, 1)]
)
def test_sigterm_reaches_the_stage_which_saves(tmp_path, is_wrapped, code, expected, signals):
  """Its exit code is that of the script; where the stage was finished, the run is not."""
  stand_in(tmp_path / "bin", "instructjax", SAVES)
  env = environment(tmp_path, CODE=str(code))
  command = ["bash", "experiments/tpu/stages.sh"]
  if is_wrapped:
    words = shlex.split(dry("tpu/xpk.sh", "start", **STAGES)[0])
    (of_workload,) = [word for word in words if word.startswith("--command=")]
    command = as_xpk_runs_it(of_workload.removeprefix("--command="))
  log = tmp_path / "log"
  with started(command, env) as script:
    wait_for(log, "sft")
    for _ in range(signals):
      script.send_signal(signal.SIGTERM)
      wait_for(log, "signalled")
    assert script.wait(timeout=30) == expected
  assert log.read_text().split() == ["sft", "signalled", "saved"]


def test_sigint_is_not_ignored_by_a_stage(tmp_path):
  """Bash would have a process in the background ignore it; a terminal sends it to both."""
  stand_in(tmp_path / "bin", "instructjax", SAVES.replace("TERM", "INT"))
  env = environment(tmp_path, CODE="130")
  command = ["bash", "experiments/tpu/stages.sh"]
  with started(command, env) as script:
    wait_for(tmp_path / "log", "sft")
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(timeout=30) == 130
  assert (tmp_path / "log").read_text().split() == ["sft", "signalled", "saved"]


def test_all_processes_take_part_in_the_report_and_compile_into_the_cache(tmp_path):
  stand_in(
    tmp_path / "bin", "instructjax", 'echo "$1 $JAX_COMPILATION_CACHE_DIR ${*: -1}" >> "$LOG"'
  )
  env = environment(tmp_path, DISTRIBUTED="1", CACHE="/mnt/b/cache")
  subprocess.run(["bash", "experiments/tpu/stages.sh"], env=env, cwd=ROOT, check=True, timeout=60)
  lines = (tmp_path / "log").read_text().splitlines()
  assert lines[-1] == "report /mnt/b/cache --distributed"
  assert {line.split()[1] for line in lines} == {"/mnt/b/cache"}


def test_the_cache_is_in_the_bucket():
  for script in ("tpu/pod.sh", "tpu/xpk.sh"):
    lines = dry(script, "start", BUCKET="b", NAME="mine", CACHE="")
    (command,) = [word for word in shlex.split(lines[-1]) if word.startswith("--command=")]
    assert "CACHE=/mnt/b/cache" in shlex.split(command)


# --- a worker of a slice ---


@pytest.fixture
def worker(tmp_path):
  """The folder of a worker whose run says that it has begun, waits for a file and ends with 7.

  Nothing is installed: the programs that would are stand-ins.
  """
  programs = tmp_path / "bin"
  for name in ("python3", "git", "uv", "sudo"):
    stand_in(programs, name, ":")
  stand_in(programs, "mountpoint", "exit 1")
  stand_in(programs, "gcsfuse", 'echo "mounted $(ls /proc/self/fd | grep -c "^9$")" >> "$LOG"')
  (tmp_path / "instructjax").mkdir()
  (tmp_path / "worker.sh").write_text((ROOT / "experiments/tpu/worker.sh").read_text())
  (tmp_path / "stages.sh").write_text(
    'trap "echo stopped; exit 143" TERM\necho begun; echo begun >> "$LOG"\n'
    "while [ ! -f go ]; do sleep 0.05; done\necho done; exit 7\n"
  )
  yield tmp_path
  (tmp_path / "go").touch()  # what a failed test has left waiting


def connect(worker: Path, *words: str) -> subprocess.Popen:
  """What a connection runs on a worker."""
  env = environment(
    worker,
    HOME=str(worker),
    NAME="mine",
    BUCKET="b",
    REPOSITORY="here",
    REVISION="main",
  )
  return subprocess.Popen(
    ["bash", "worker.sh", *words],
    cwd=worker,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )


def test_a_dropped_connection_starts_no_second_run(worker):
  """The second one shows the log of the run that goes on, and ends with its exit code."""
  log = worker / "log"
  with connect(worker) as first:
    wait_for(log, "begun")
    os.killpg(first.pid, signal.SIGKILL)
  with connect(worker) as second:
    assert "a run is going on here" in second.stderr.readline()
    (worker / "go").touch()
    out, err = second.communicate(timeout=30)
  assert second.returncode == 7
  assert out.splitlines() == ["begun", "done"]
  assert "the run ended with exit code 7" in err
  assert log.read_text().split() == ["mounted", "0", "begun"]  # the lock is not kept by the mount
  # It has ended, so the next connection starts one.
  with connect(worker) as third:
    assert third.wait(timeout=30) == 7
  assert log.read_text().count("begun") == 2


def test_a_run_that_is_killed_has_no_exit_code_of_before(worker):
  (worker / "go").touch()
  with connect(worker) as first:
    assert first.wait(timeout=30) == 7
  (worker / "go").unlink()
  with connect(worker) as second:
    wait_for(worker / "log", "begun\nmounted 0\nbegun")
    os.killpg(int((worker / "run" / "pid").read_text()), signal.SIGKILL)
    _, err = second.communicate(timeout=30)
  assert second.returncode == 1
  assert "the run was killed" in err


def test_a_run_is_stopped_by_asking_it_to_save(worker):
  with connect(worker) as first:
    wait_for(worker / "log", "begun")
    with connect(worker, "stop") as stop:
      assert stop.wait(timeout=30) == 0
    out, _ = first.communicate(timeout=30)
  assert first.returncode == 143
  assert out.splitlines()[0] == "begun" and out.splitlines()[-1] == "stopped"
  with connect(worker, "stop") as stop:
    _, err = stop.communicate(timeout=30)
  assert stop.returncode == 0 and "no run is going on here" in err


# --- GPU hosts ---

# Slurm, for two processes on this machine: SIGTERM goes to all processes of the step, and the
# exit code is the largest.
SRUN = """
echo "srun $*" >> "$LOG"
while [[ "$1" == --* ]]; do shift; done
for index in 0 1; do
  SLURM_PROCID=$index SLURM_LOCALID=$index env --default-signal=INT setsid "$@" &
  pids[index]=$!
done
echo "${pids[@]}" > "$RUNS/step"
largest=0
for pid in "${pids[@]}"; do
  code=0; wait "$pid" || code=$?
  [ "$code" -le "$largest" ] || largest=$code
done
exit "$largest"
"""


@pytest.fixture
def job(tmp_path):
  """The environment of a job: a folder of stand-ins, in a copy of the scripts."""
  for name in ("gpu", "tpu"):
    shutil.copytree(ROOT / "experiments" / name, tmp_path / "experiments" / name)
  stand_in(tmp_path / "bin", "srun", SRUN)
  stand_in(tmp_path / "bin", "scontrol", 'echo "scontrol $*" >> "$LOG"')
  return environment(
    tmp_path,
    SLURM_SUBMIT_DIR=str(tmp_path),
    SLURM_JOB_ID="71",
    SLURM_NTASKS_PER_NODE="2",
    SLURM_CPUS_ON_NODE="16",
  )


def submitted() -> list[str]:
  return ["bash", str(ROOT / "experiments/gpu/slurm.sh")]


def test_slurm_gives_each_process_its_share_of_the_node(job, tmp_path):
  stand_in(
    tmp_path / ".venv" / "bin",
    "instructjax",
    'echo "$1 $SLURM_PROCID ${*: -1} $XLA_PYTHON_CLIENT_MEM_FRACTION" >> "$LOG"',
  )
  subprocess.run(submitted(), env=job, check=True, timeout=60)
  first, *lines = (tmp_path / "log").read_text().splitlines()
  assert "--cpus-per-task=8" in first.split() and "--kill-on-bad-exit=0" in first.split()
  stages = ["sft", "rl_init", "sft", "reward", "ppo", "report"]
  for index in "01":
    own = [line.split() for line in lines if line.split()[1] == index]
    assert own == [[stage, index, "--distributed", "0.9"] for stage in stages]


@pytest.mark.parametrize(
  ("sent", "code", "is_queued_again"),
  [("TERM", 143, True), ("INT", 130, False)],
)
def test_slurm_queues_a_job_again_whose_stage_has_saved(job, tmp_path, sent, code, is_queued_again):
  """SIGTERM comes when the time is up; SIGINT is that of a user who ends the job for good."""
  stand_in(tmp_path / ".venv" / "bin", "instructjax", SAVES.replace("TERM", sent))
  log = tmp_path / "log"
  with started(submitted(), job | {"CODE": str(code)}) as script:
    end = time.monotonic() + 30
    while not log.is_file() or log.read_text().split().count("sft") < 2:
      assert time.monotonic() < end
      time.sleep(0.01)
    for pid in (tmp_path / "step").read_text().split():
      os.killpg(int(pid), getattr(signal, f"SIG{sent}"))
    assert script.wait(timeout=30) == code
  lines = log.read_text().splitlines()
  assert lines.count("saved") == 2
  assert ("scontrol requeue 71" in lines) == is_queued_again


def test_slurm_does_not_queue_a_failed_job_again(job, tmp_path):
  stand_in(tmp_path / ".venv" / "bin", "instructjax", '[ "$SLURM_PROCID" = 0 ] || exit 2')
  done = subprocess.run(submitted(), env=job, check=False, timeout=60)
  assert done.returncode == 2
  assert "scontrol" not in (tmp_path / "log").read_text()


def test_slurm_says_what_is_to_be_installed_first(job):
  done = subprocess.run(
    submitted(), env=job, check=False, timeout=60, capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "run experiments/gpu/install.sh first" in done.stderr


def test_hosts_without_slurm_are_named_by_an_address():
  lines = dry("gpu/host.sh", DISTRIBUTED="gpu-1:1234,2,1", **STAGES)
  assert {shlex.split(line)[-1] for line in lines} == {"--distributed=gpu-1:1234,2,1"}
  (line,) = dry("gpu/slurm.sh", SLURM_SUBMIT_DIR=str(ROOT))
  assert shlex.split(line)[-2:] == ["bash", "experiments/tpu/stages.sh"]


def test_a_gpu_gives_jax_what_the_plan_counts_on():
  """By itself jax takes three quarters, and the plan counts on more."""
  line = (ROOT / "experiments/gpu/settings.sh").read_text().splitlines()[-1]
  fraction = float(line.rpartition(":-")[2].rstrip('}"'))
  assert 0.75 < estimate.SURE < fraction < 0.95


@pytest.mark.slow
def test_two_processes_find_each_other_by_what_slurm_tells_them(tmp_path):
  """The first one writes the run, of which each has made half of the rows."""
  (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the quick brown fox " * 60}) + "\n")
  command = [sys.executable, "-m", "instructjax", "pretrain", "--config=pretrain:tiny"]
  command += [f"--workdir={tmp_path / 'run'}", f"--config.data.text={tmp_path / 'text.jsonl'}"]
  command += ["--config.data.length=16", "--config.batch=4", "--config.steps=2"]
  command += ["--config.data.valid=", "--config.mesh.data=2", "--distributed"]
  job = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
    "SLURM_JOB_ID": str(os.getpid()),  # of which jax makes the port
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
  }
  both = [
    subprocess.Popen(command, env=job | {"SLURM_PROCID": index, "SLURM_LOCALID": index})
    for index in ("0", "1")
  ]
  assert [process.wait(timeout=300) for process in both] == [0, 0]
  manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
  assert (manifest["processes"], manifest["finished"]["step"]) == (2, 2)


@pytest.mark.parametrize("action", ["create", "start", "watch", "stop", "logs", "report", "delete"])
def test_pod_prints_its_commands(action):
  lines = dry("tpu/pod.sh", action, NAME="mine", PROJECT="p", ZONE="z-a", TYPE="v5p-8")
  assert lines
  assert all(shlex.split(line)[0] == "gcloud" for line in lines)
  if action == "create":
    assert "--accelerator-type=v5p-8" in lines[0] and "--spot" in lines[0]
  if action in ("logs", "report"):
    assert lines[0].split()[:3] == ["gcloud", "storage", "cat" if action == "logs" else "cp"]
    assert "gs://my-bucket/runs/mine/" in lines[0]
  if action == "start":
    (remote,) = (word for word in shlex.split(lines[1]) if word.startswith("--command="))
    words = shlex.split(remote.removeprefix("--command="))
    assert words[-2:] == ["bash", "worker.sh"]
    assert {"NAME=mine", "MESH=data=1,fsdp=64,model=1"} <= set(words)


@pytest.mark.parametrize(
  ("runs", "logs", "report"),
  [
    ("gs://b/mine", "gs://b/mine/*/metrics.jsonl", "gs://b/mine/ppo/report.html"),
    ("/mnt/b/mine", "gs://b/mine/*/metrics.jsonl", "gs://b/mine/ppo/report.html"),
    (
      "/disk/mine",
      "--command=tail -n 40 /disk/mine/*/metrics.jsonl",
      "pod:/disk/mine/ppo/report.html",
    ),
  ],
)
def test_pod_reads_the_runs_where_they_are(runs, logs, report):
  settings_of_run = {"NAME": "pod", "BUCKET": "b", "RUNS": runs}
  (line,) = dry("tpu/pod.sh", "logs", **settings_of_run)
  assert logs in shlex.split(line)
  (line,) = dry("tpu/pod.sh", "report", **settings_of_run)
  assert report in shlex.split(line)


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
