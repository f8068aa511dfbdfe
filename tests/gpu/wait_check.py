"""A kernel that waits too long ends in one sentence, on a real GPU:

    python -m tests.gpu.wait_check grid
    python -m tests.gpu.wait_check cluster

In a process of its own, whose GPU is lost afterwards. Nothing is broken for it: a limit of a microsecond, less than a
tick of the kernels' clock, lets the first block that has to wait at all give up at its first look, however coarse the
GPU's clock is. Exit status: 0 if the sentence came, which is printed; 1 if not; 2 without a GPU or kernels for it; 4
where the GPU has no clusters.
"""

from __future__ import annotations

import os
import re
import sys

T, B, H = 64, 4, {"grid": 768, "cluster": 256}


def main(arguments: list[str]) -> int:
    if arguments not in (["grid"], ["cluster"]):
        print(__doc__, file=sys.stderr)
        return 2
    [regime] = arguments
    os.environ |= {"PRNN_CUDA_REGIME": regime, "PRNN_CUDA_WAIT_SECONDS": "1e-6"}
    import torch

    from prnn import native

    if not torch.cuda.is_available() or not native.cuda_status()[0]:
        print(native.cuda_status()[1] or "torch sees no GPU", file=sys.stderr)
        return 2
    if regime == "cluster" and torch.cuda.get_device_capability() < (9, 0):
        print("this GPU has no clusters", file=sys.stderr)
        return 4
    status = 0
    try:
        told(regime)
        print(native.cuda_fault(), flush=True)
    except AssertionError as error:
        status = 1
        print(f"FAIL: {error}", file=sys.stderr, flush=True)
    os._exit(status)  # destructors would meet the lost GPU


def told(regime: str) -> None:
    """Raises AssertionError unless the error, the record and all later calls say what happened."""
    import torch

    from prnn import native, ops

    units = H[regime]
    x = torch.randn(T, B, 4 * units, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(4 * units, units, device="cuda", dtype=torch.bfloat16) * 0.02
    h0, c0 = torch.zeros(1, B, units, device="cuda", dtype=torch.bfloat16), torch.zeros(1, B, units, device="cuda")
    assert native.cuda_fault() is None, f"before the launch: {native.cuda_fault()}"
    with ops.backend("cuda"), torch.no_grad():
        try:
            ops.layer(x, [ops.Weights(None, weight)], (h0, c0), "lstm")
            torch.cuda.synchronize()
            raise AssertionError("the kernel ended well, as if no block had ever waited")
        except RuntimeError as error:
            first = str(error).splitlines()[0]
        fault = native.cuda_fault()
        assert fault is not None, f"nothing was recorded, but CUDA says: {first}"
        expected = (
            rf"prnn: lstm bfloat16 T={T} B={B} H={units}, forward, {regime} regime, \d+ blocks: block \d+ waited more "
            rf"than 1e-06 s for {'piece [0-9]+ of ' if regime == 'grid' else ''}publication (\d+), "
        )
        matched = re.match(expected, fault)
        assert matched and int(matched[1]) < T, f"the sentence is another: {fault}"
        try:
            ops.layer(x, [ops.Weights(None, weight)], (h0, c0), "lstm")
            raise AssertionError("a call after it went through")
        except RuntimeError as error:
            assert fault in str(error), f"a call after it says: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
