"""NCCL's own cost model of an all-reduce on a cluster of H100 or H200. Nothing here is measured.

NCCL chooses among rings and trees, and among three protocols (LL: flags in the data; LL128: flags in lines of 128
bytes; Simple: large pieces), by a cost model in its src/graph/tuning.cc: a latency of base + hops, and bytes over a
bandwidth. The constants below are from there (version 2.20.3), the bandwidths from the machine's data sheet times what
nccl-tests usually reach. Left out: NVLS and SHARP (sums in the switches), which would be quicker, and NCCL's
corrections for medium sizes on trees, with which those would be slower.

With p GPUs a node and m nodes, n = p m:

    ring    base + (2 (n - 1) - 2 m) max(NVLink hop, network overhead) + 2 m network hops + 2 (n - 1) / n S / bandwidth
    tree    base + 2 ((p - 1) NVLink hops + log2 m network hops) + 2 S / bandwidth

On one node there are no network hops and no overhead. The bandwidth is a node's: NCCL's rings leave it by all its
network adapters at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

NCCL = "NCCL 2.20.3, src/graph/tuning.cc"


@dataclass(frozen=True)
class Way:
    """An algorithm with a protocol: microseconds, the share of the bandwidth it can use, and GB/s it cannot exceed."""

    algorithm: str
    protocol: str
    base_us: float
    nvlink_us: float
    network_us: float
    overhead_us: float  # least time of a hop when there is a network: the adapter's host posts each of them
    share: float
    most_gb: tuple[float, float] = (math.inf, math.inf)  # on one node, on several


WAYS = (
    Way("ring", "LL", 6.6, 0.6, 2.7, 1.0, 1 / 4, (87.7, 19.0)),
    Way("ring", "LL128", 14.0, 1.9, 4.0, 1.0, 0.92),
    Way("ring", "Simple", 8.4, 3.4, 14.0, 3.0, 1.0),
    Way("tree", "LL", 6.8, 0.6, 5.0, 0.0, 0.92 / 3.8, (87.7, 19.0)),
    Way("tree", "LL128", 14.0, 1.25, 8.5, 0.0, 0.92 * 120 / 128),
    Way("tree", "Simple", 0.0, 28.0, 28.0, 0.0, 0.92),
)


@dataclass(frozen=True)
class Cluster:
    """Nodes of ``node`` GPUs; bandwidths in GB/s, of NVLink for each GPU, of the network for a whole node."""

    node: int = 8
    nvlink_gb: float = 360.0
    network_gb: float = 360.0
    ways: tuple[Way, ...] = field(default=WAYS, repr=False)

    def all_reduce(self, n: int, size: float) -> tuple[float, str]:
        """Seconds for ``size`` bytes on ``n`` GPUs, and the fastest algorithm and protocol."""
        if n < 2:
            return 0.0, "none"
        times = {f"{way.algorithm}, {way.protocol}": self.seconds(way, n, size) for way in self.ways}
        best = min(times, key=times.__getitem__)
        return times[best], best

    def seconds(self, way: Way, n: int, size: float) -> float:
        """The same for one algorithm and protocol; all nodes are full, or there is one node."""
        nodes = math.ceil(n / self.node)
        several = nodes > 1
        rate = min(self.network_gb if several else self.nvlink_gb, self.nvlink_gb) * way.share
        rate = min(rate, way.most_gb[several]) * 1e9
        if way.algorithm == "ring":
            inside = 2 * (n - 1) - (2 * nodes if several else 0)
            hop = max(way.nvlink_us, way.overhead_us) if several else way.nvlink_us
            latency = inside * hop + (2 * nodes * way.network_us if several else 0.0)
            return (way.base_us + latency) / 1e6 + 2 * (n - 1) / n * size / rate
        depth = (min(n, self.node) - 1) * way.nvlink_us + math.ceil(math.log2(nodes)) * way.network_us
        return (way.base_us + 2 * depth) / 1e6 + 2 * size / rate


def assumptions(cluster: Cluster) -> list[dict[str, str]]:
    """Each constant with its source, for the JSON and the page."""
    gathered = [
        (f"{way.algorithm}, {way.protocol}: base; a hop over NVLink; over the network; its overhead",
         f"{way.base_us:g}; {way.nvlink_us:g}; {way.network_us:g}; {way.overhead_us:g} us", NCCL)
        for way in cluster.ways
    ]  # fmt: skip
    gathered += [
        (f"{way.algorithm}, {way.protocol}: share of the bandwidth",
         f"{way.share:.3g}" + (f", at most {way.most_gb[1]:g} GB/s" if way.most_gb[1] < math.inf else ""), NCCL)
        for way in cluster.ways
    ]  # fmt: skip
    gathered += [
        ("GPUs of a node", f"{cluster.node}", "NVIDIA DGX H100 and H200"),
        ("bandwidth of NVLink for each GPU, one direction", f"{cluster.nvlink_gb:g} GB/s",
         "data sheet of the H100 and H200 (900 GB/s both ways together), times 0.8: our guess"),
        ("bandwidth of a node's network, one direction", f"{cluster.network_gb:g} GB/s",
         "DGX H100 data sheet (8 ConnectX-7 of 400 Gb/s InfiniBand), times 0.9: our guess"),
    ]  # fmt: skip
    return [{"what": what, "value": value, "source": source} for what, value, source in gathered]
