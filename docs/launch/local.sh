#!/usr/bin/env bash
# Trains in several processes on this machine's CPU, to try out a distributed run.
#
#   NUM_PROCESSES=2 docs/launch/local.sh --config=configs/digits.py --workdir=runs/two
#
# Ctrl-C or SIGTERM stops all processes at the same step, with the state saved. The exit
# code is the first nonzero exit code in the order of the processes.
set -euo pipefail

NUM_PROCESSES=${NUM_PROCESSES:-2}
PYTHON=${PYTHON:-python}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

port=$("$PYTHON" -c '
import socket
print(socket.create_server(("", 0)).getsockname()[1])')

pids=() interrupted='' stopping=''
trap 'interrupted=yes stopping=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM

# Returns the exit code of a process, even if signals interrupt the wait.
wait_for() {
  local status again
  interrupted=''
  wait "$1"
  status=$?
  while [[ $interrupted ]]; do
    interrupted=''
    wait "$1"
    again=$?
    ((again == 127)) || status=$again # 127: it had already ended with that code.
  done
  return "$status"
}

for ((id = 0; id < NUM_PROCESSES; id++)); do
  # Background processes ignore the SIGINT of Ctrl-C; the trap sends them one SIGTERM.
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
