#!/usr/bin/env bash
# Trains in several processes on this machine's CPU: a dry run of what many hosts do.
#
#   NUM_PROCESSES=2 docs/launch/local.sh --config=configs/digits.py --workdir=runs/two
#
# Ctrl-C or SIGTERM stops all of them at the same step, with the state saved. Exits with the
# first code that is not 0, counted from process 0.
set -euo pipefail

NUM_PROCESSES=${NUM_PROCESSES:-2}
PYTHON=${PYTHON:-python}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

port=$("$PYTHON" -c '
import socket
print(socket.create_server(("", 0)).getsockname()[1])')

pids=() interrupted='' stopping=''
trap 'interrupted=yes stopping=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

# The exit code of a process, however often a signal breaks off the waiting for it.
wait_for() {
  local status again
  interrupted=''
  wait "$1"
  status=$?
  while [[ $interrupted ]]; do
    interrupted=''
    wait "$1"
    again=$?
    ((again == 127)) || status=$again # 127: it had ended, and that was its code.
  done
  return "$status"
}

for ((id = 0; id < NUM_PROCESSES; id++)); do
  # Behind an & the shell lets Ctrl-C pass them by: they hear of it as SIGTERM, once.
  "$PYTHON" -m googlenet_flax.main "$@" --config.distributed=True \
    --coordinator_address="localhost:$port" --num_processes="$NUM_PROCESSES" \
    --process_id="$id" &
  pids+=("$!")
  if [[ $stopping ]]; then kill -TERM "$!" 2>/dev/null || true; fi
done

code=0
for pid in "${pids[@]}"; do
  status=0
  wait_for "$pid" || status=$?
  ((code)) || code=$status
done
exit "$code"
