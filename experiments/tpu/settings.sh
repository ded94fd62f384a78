# What a launch needs to know; sourced by the scripts beside it.  Everything can be set in the environment.
: "${PROJECT:=my-project}" "${ZONE:=us-east5-a}" "${NAME:=instructjax}"
: "${TYPE:=v5p-128}"                  # v5litepod-8 is one TPU VM, v5p-128 a slice of 16 hosts
: "${RUNTIME:=v2-alpha-tpuv5}"        # v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv6e for v6e
: "${BUCKET:=my-bucket}"              # with a hierarchical namespace: see bucket.sh
: "${REPOSITORY:=https://example.com/instructjax.git}" "${REVISION:=main}" # an address the workers can clone
: "${SIZE:=1.3b}" "${REWARD_SIZE:=6b}" # presets of configs/: the policy's, and the reward and value models'
: "${MESH:=data=1,fsdp=64,model=1}"   # from `instructjax plan --search`
: "${POLICY_BASE:=/mnt/$BUCKET/models/policy}" "${REWARD_BASE:=/mnt/$BUCKET/models/reward}" # or hub ids
: "${DATA:=/mnt/$BUCKET/data}" "${RUNS:=/mnt/$BUCKET/runs/$NAME}"
: "${CACHE:=/mnt/$BUCKET/cache}"      # compiled programs, which a new slice of the same kind does not compile again
: "${SPOT:=1}"
export PROJECT ZONE NAME TYPE RUNTIME BUCKET REPOSITORY REVISION SIZE REWARD_SIZE MESH POLICY_BASE REWARD_BASE DATA RUNS
export CACHE SPOT

# run COMMAND...: runs it, or with DRY_RUN=1 prints it.
run() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The settings as words of a command line on another machine.
exported() {
  local name
  for name in NAME BUCKET REPOSITORY REVISION SIZE REWARD_SIZE MESH POLICY_BASE REWARD_BASE DATA RUNS CACHE; do
    printf '%s=%q ' "$name" "${!name}"
  done
}
