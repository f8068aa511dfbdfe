#!/usr/bin/env bash
# Train with several processes: on this node, or, started once on each node, on many.
#
#   launchers/torchrun.sh task=char_lm trainer.max_steps=5000                                  one node, a process per GPU
#   PROCESSES=2 launchers/torchrun.sh ...                                                      two processes
#   NODES=4 HEAD=node0.example.org:29400 launchers/torchrun.sh ...                             the same line on all four
#
# When a process dies torchrun starts all of them again, RESTARTS times (3), and the run goes on from its last checkpoint,
# which must lie on storage that all nodes share (run_dir=DIR).
set -euo pipefail

NODES="${NODES:-1}"
# A GPU each; without GPUs, two processes (recurrent networks on a CPU gain little from more).
gpus="$(python3 -c 'import torch; print(torch.cuda.device_count())')"
PROCESSES="${PROCESSES:-$((gpus > 0 ? gpus : 2))}"

if [[ "$NODES" == 1 ]]; then
    where=(--standalone)
else
    where=(--rdzv-backend=c10d --rdzv-endpoint="${HEAD:?set HEAD=HOST:PORT, one of the nodes}" --rdzv-id="${JOB:-prnn}")
fi

exec torchrun "${where[@]}" --nnodes="$NODES" --nproc-per-node="$PROCESSES" --max-restarts="${RESTARTS:-3}" \
    -m prnn.train "$@"
