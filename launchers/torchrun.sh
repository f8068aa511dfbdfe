#!/usr/bin/env bash
# Multi-process training: on one node, or on several by running this script on each of them.
#
#   launchers/torchrun.sh task=char_lm trainer.max_steps=5000                     one node, one process per GPU
#   PROCESSES=2 launchers/torchrun.sh ...                                         two processes
#   NODES=4 HEAD=node0.example.org:29400 RUN=DIR launchers/torchrun.sh ...        the same command on all four nodes
#   NODES=2:4 HEAD=... RUN=DIR launchers/torchrun.sh ...                          elastic: two to four nodes
#
# RUN is the run directory, on storage that all nodes share. The same command with the same RUN resumes from the last
# checkpoint in it. The output of each process is in RUN/logs/HOST/*/attempt_N/LOCAL_RANK/.
#
# When a process fails, torchrun restarts all, up to RESTARTS times (3). When torchrun itself fails, or this node was
# disconnected from the others, this script restarts torchrun, up to REJOINS times (10). On Ctrl-C, SIGTERM and SIGUSR1
# all processes save a checkpoint and stop; the exit status is then 130, 143 or 138, otherwise 0 or 1.
set -euo pipefail

NODES="${NODES:-1}"
# One process per GPU; without GPUs, two processes (recurrent networks on a CPU gain little from more).
gpus="$(python3 -c 'import torch; print(torch.cuda.device_count())')"
PROCESSES="${PROCESSES:-$((gpus > 0 ? gpus : 2))}"

if [[ "$NODES" == 1 ]]; then
    HEAD=localhost:0 # any free port
    RUN="${RUN:-runs/torchrun/$(date +%Y-%m-%d_%H-%M-%S)}"
else
    : "${HEAD:?set HEAD=HOST:PORT, one of the nodes}" "${RUN:?set RUN=DIR, a run directory that all nodes share}"
    # A new store for each attempt: a shared one would still hold the addresses of the previous attempt after a restart.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export PRNN_RUN_DIR="$RUN"

errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
signal=""
for name in INT TERM USR1; do
    # The terminal sends SIGINT to torchrun too, but background jobs of a shell may ignore it.
    trap "signal=$name; [[ -z \${agent:-} ]] || kill -${name/INT/TERM} \$agent 2> /dev/null || true" "$name"
done

start_agent() {
    # TORCHELASTIC_ERROR_FILE: where torchrun reports its own failures.
    PRNN_LAUNCH="$$" TORCHELASTIC_ERROR_FILE="$errors" torchrun \
        --nnodes="$NODES" --nproc-per-node="$PROCESSES" --max-restarts="${RESTARTS:-3}" \
        --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="${JOB:-prnn}" \
        --log-dir="$RUN/logs/$(hostname)" --tee=3 \
        --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=90 \
        -m prnn.train "$@" &
    agent=$!
}

wait_for_agent() { # a trapped signal interrupts wait while the agent goes on
    status=0
    wait "$agent" || status=$?
    while kill -0 "$agent" 2> /dev/null; do
        status=0
        wait "$agent" || status=$?
    done
}

end_leftovers() { # a killed torchrun leaves orphaned processes, which would continue to write to the run directory
    local left
    left="$(grep -lzsx "PRNN_LAUNCH=$$" /proc/[0-9]*/environ | cut -d/ -f3)" || true
    [[ -z "$left" ]] || kill -KILL $left 2> /dev/null || true
}

for ((attempt = 0; ; attempt++)); do
    : > "$errors"
    [[ -n "$signal" ]] || start_agent "$@"
    wait_for_agent
    end_leftovers
    ((status == 0)) || [[ -z "$signal" ]] || exit "$((128 + $(kill -l "$signal")))"
    # No failure of torchrun itself: training is done, or has failed more than RESTARTS times.
    ((status > 128)) || [[ -s "$errors" ]] || exit "$status"
    ((attempt < ${REJOINS:-10})) || exit 1
    echo "torchrun.sh: torchrun ended with status $status; restarting it ($((attempt + 1)) of ${REJOINS:-10})" >&2
    sleep "${REJOIN_SECONDS:-5}"
done
