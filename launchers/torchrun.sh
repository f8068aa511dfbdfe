#!/usr/bin/env bash
# Train with several processes: on this node, or, started once on each node, on many.
#
#   launchers/torchrun.sh task=char_lm trainer.max_steps=5000                     one node, a process per GPU
#   PROCESSES=2 launchers/torchrun.sh ...                                         two processes
#   NODES=4 HEAD=node0.example.org:29400 RUN=DIR launchers/torchrun.sh ...        the same line on all four
#   NODES=2:4 HEAD=... RUN=DIR launchers/torchrun.sh ...                          two to four, which may come and go
#
# RUN is the run directory, on storage that all nodes share. The same line with the same RUN goes on from the last
# checkpoint in it. Each process's output stands in RUN/logs/HOST/*/attempt_N/RANK_ON_THIS_HOST/.
#
# When a process dies, all are started again, RESTARTS times (3), by torchrun. When torchrun itself dies, or loses the
# others because this node was cut off, it is started again here, REJOINS times (10). Ctrl-C, SIGTERM and SIGUSR1 make
# all processes save a checkpoint and stop; the exit status is then 130, 143 or 138, otherwise 0 or 1.
set -euo pipefail

NODES="${NODES:-1}"
# A GPU each; without GPUs, two processes (recurrent networks on a CPU gain little from more).
gpus="$(python3 -c 'import torch; print(torch.cuda.device_count())')"
PROCESSES="${PROCESSES:-$((gpus > 0 ? gpus : 2))}"

if [[ "$NODES" == 1 ]]; then
    HEAD=localhost:0 # any free port
    RUN="${RUN:-runs/torchrun/$(date +%Y-%m-%d_%H-%M-%S)}"
else
    : "${HEAD:?set HEAD=HOST:PORT, one of the nodes}" "${RUN:?set RUN=DIR, a run directory that all nodes share}"
    # A store of its own for each life of the processes: in torchrun's, a new life finds the addresses of the last one.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
export PRNN_RUN_DIR="$RUN"

errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
signal=""
for name in INT TERM USR1; do
    # Ctrl-C reaches torchrun by itself, but a shell's background job may ignore it.
    trap "signal=$name; [[ -z \${agent:-} ]] || kill -${name/INT/TERM} \$agent 2> /dev/null || true" "$name"
done

start_agent() {
    # TORCHELASTIC_ERROR_FILE: where torchrun writes what went wrong with torchrun itself.
    PRNN_LAUNCH="$$" TORCHELASTIC_ERROR_FILE="$errors" torchrun \
        --nnodes="$NODES" --nproc-per-node="$PROCESSES" --max-restarts="${RESTARTS:-3}" \
        --rdzv-backend=c10d --rdzv-endpoint="$HEAD" --rdzv-id="${JOB:-prnn}" \
        --log-dir="$RUN/logs/$(hostname)" --tee=3 \
        --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout=90 \
        -m prnn.train "$@" &
    agent=$!
}

wait_for_agent() { # a trapped signal ends a wait, not the agent
    status=0
    wait "$agent" || status=$?
    while kill -0 "$agent" 2> /dev/null; do
        status=0
        wait "$agent" || status=$?
    done
}

end_leftovers() { # a torchrun that was killed leaves its processes behind, and they would go on writing
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
    # No word of torchrun's own trouble: done, or the training failed more than RESTARTS times.
    ((status > 128)) || [[ -s "$errors" ]] || exit "$status"
    ((attempt < ${REJOINS:-10})) || exit 1
    echo "torchrun.sh: torchrun ended with status $status; starting it again ($((attempt + 1)) of ${REJOINS:-10})" >&2
    sleep "${REJOIN_SECONDS:-5}"
done
