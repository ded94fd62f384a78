#!/bin/sh
# Plans the paper's presets into plans.jsonl: one report a line, with its command.  About an hour on two busy cores.
set -e
cd "$(dirname "$0")"
: > plans.jsonl
plan() {
  instructjax plan "$@" --json | python3 -c '
import json, sys
command = " ".join(["instructjax plan", *sys.argv[1:]])
print(json.dumps({"command": command} | json.load(sys.stdin)))' "$@" >> plans.jsonl
}
plan --config=sft:1.3b --topology=v5e:4x4 --mesh=fsdp=16
plan --config=sft:6b --topology=v5e:4x8 --mesh=fsdp=32
plan --config=sft:175b --topology=v5p:4x4x8 --mesh=fsdp=8,model=16
plan --config=reward:6b --topology=v5p:4x4x4 --mesh=fsdp=64
plan --config=ppo:1.3b --topology=v5p:4x4x4 --mesh=fsdp=64
plan --config=ppo:6b --topology=v5p:4x4x4 --mesh=fsdp=64
plan --config=ppo:175b --topology=v5p:8x8x16 --mesh=fsdp=64,model=16 --config.ppo.ptx_micro=8
plan --config=sft:1.3b --topology=v4:2x2x4 --mesh=fsdp=16
plan --config=sft:1.3b --topology=v6e:4x4 --mesh=fsdp=16
plan --config=sft:1.3b --topology=tpu7x:2x2x2 --mesh=fsdp=16
plan --config=sft:6b --topology=v5e:4x4 --slices=2 --mesh=data=2,fsdp=16
plan --config=sft:175b --topology=v5p:4x4x8 --mesh=fsdp=8,model=16 --config.model.sequence=True
plan --config=ppo:1.3b --topology=v5p:4x4x4 --mesh=fsdp=64 --config.sampling.whole=False
