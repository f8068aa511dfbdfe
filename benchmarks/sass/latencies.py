"""The constants of the timing model, in cycles of the multiprocessor, and their sources.

[R] benchmarks/results/h200/results.md: microbenchmarks on one H200. [L] Luo et al., arXiv 2402.13499 (Hopper). [J] Jia
et al., arXiv 1804.06826 (Volta; units whose latency changed little since). [G] CUDA C++ Programming Guide, arithmetic
throughput of compute capability 9.0. [E] an estimate.
"""

from __future__ import annotations

# From issue to the release of the scoreboard, of instructions of variable latency.
LATENCY = {
    "LDS": 29,  # [L] 29; [J] 28 to 33
    "LDSM": 33,  # [J]
    "LDL": 33,  # [L] a hit in L1
    "LDC": 30,  # [E] a hit in the constant cache of level 1.5, by register
    "ULDC": 12,  # [E]; without a scoreboard, covered by stall counts
    "SHFL": 23,  # [J] 22 to 25
    "MUFU": 18,  # [J] 18 to 23
    "I2F": 14,  # [J]
    "F2I": 14,  # [J]
    "F2F": 14,  # [J]
    "S2R": 24,  # [E]
    "S2UR": 24,  # [E]
    "R2UR": 12,  # [J]
    "CS2R": 10,  # [E]
    "VOTE": 12,
    "VOTEU": 12,
    "REDUX": 24,
    "POPC": 14,
    "FLO": 14,
    "BREV": 14,
    "SYNCS": 24,  # [E] an mbarrier operation is one on shared memory
    "STAS": 40,  # [E] until its operands are read
    "LD": 600,
    "ATOM": 600,
    "ATOMG": 600,
    "ATOMS": 60,
    "DSETP": 40,
    "DADD": 40,
    "DMUL": 40,
    "DFMA": 40,
}
L2_LOAD = 282  # [R] l2_load
L1_LOAD = 34  # [L]
DRAM_LOAD = 560  # [L] about; data of a step that nobody loaded before
WEIGHT_LOAD = 700  # [E] 600 to 800: the same at the start, when all blocks load and the TLBs are empty
LOAD_SAMPLES_L2 = 141  # [R] half of a load's way
STORE_REACHES_L2 = 240  # [R] put_to_seen 520, less a load
STORE_AND_FENCE = 695  # [R] store_and_fence, 1 block; 784 where all blocks do
FENCE_ALONE = 30  # [E] without outstanding stores
OPERANDS_READ = 10  # [E] until the read scoreboard of a memory instruction is released, from its turn in the queue
BLOCK_BARRIER = 22  # [R] block_barrier 28.6, less the issue of a loop around it
CLUSTER_BARRIER = 370  # [R] cluster_barrier
CLUSTER_EXCHANGE = 560  # [R] cluster_exchange, 2 to 8 blocks: the part without bytes
CLUSTER_EXCHANGE_16 = 667  # [R] the same of 16 blocks
CLUSTER_BYTES = 18.0  # [R] a cycle into a block, 17 to 20
NANOSLEEP = 100  # [E] cycles, whatever the operand
TRY_WAIT_LIMIT = 1000  # [E] a suspended try_wait returns

# Throughput. Shared memory and L1 serve a wavefront of 128 bytes a cycle.
# [R] fitted: with it, the kernel grid_exchange<true> of the former gpu_check/micro.cu, simulated for 48 blocks, takes
# 2,145, 2,632, 4,389 and 4,969 cycles for 12, 16, 48 and 64 KiB; measured were 2,168, 2,452, 4,356 and 4,952. l2_read,
# of words that nobody writes, has 84 to 151.
L2_BYTES = 30.0  # a cycle of an exchange into a multiprocessor
# Bytes of the weights. Teams load the same ones at a time, which come from DRAM once.
DRAM_BYTES = 2424.0  # a cycle, of all multiprocessors: 4.8 TB/s (data sheet of the H200) at 1.98 GHz
WEIGHT_BYTES = 64.0  # [E] a cycle, into one of them
STORE_CYCLES = 4  # [E] of the multiprocessor's path to L2, a warp's store of one word or less a lane in 1 to 8 sectors
# Cycles for which a scheduler's unit is taken by an instruction of a warp. [G]: 128, 64 or 16 results a cycle of four.
UNIT_CYCLES = {"alu": 2, "imad": 2, "fma": 1, "xu": 8, "tensor": 6, "uniform": 2, "lsu": 2, "half": 2, "branch": 2}

# A taken branch: the next instruction comes from the instruction cache. [J], [E]: the stall count of BRA is 5, and the
# front end needs more.
TAKEN_BRANCH = 10
