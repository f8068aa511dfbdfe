"""The exchange through global memory and within a cluster as one block sees it, with all blocks alike.

This is the only part that knows how words are published: a store is in L2 after a fixed time. Words of others change
when the corresponding own ones do: a foreign word is what that own word of its slot is whose last change is the oldest,
so that a publication of others is complete when the last own word of it has arrived.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from benchmarks.sass import latencies

EMPTY = 0xFFFFFFFF  # a word that has not been put since the launch, or the kernel, cleared it


class Exchange:
    def __init__(self, base: int, size: int, slot_bytes: int) -> None:
        self.base, self.size, self.slot_bytes = base, size, slot_bytes
        # Times of arrival in L2 and values, of each own word; and the own words of a slot by their place in 16 bytes.
        self.history: dict[int, tuple[list[int], list[int]]] = {}
        self.own: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.own_of_slot: dict[int, list[int]] = defaultdict(list)

    def contains(self, address: int) -> bool:
        return self.base <= address < self.base + self.size

    def _slot(self, address: int) -> int:
        return (address - self.base) // self.slot_bytes

    def store(self, address: int, value: int, now: int) -> None:
        if address not in self.history:
            self.history[address] = [], []
            self.own[self._slot(address), address % 16].append(address)
            self.own_of_slot[self._slot(address)].append(address)
        times, values = self.history[address]
        times.append(max(now + latencies.STORE_REACHES_L2, times[-1] if times else 0))
        values.append(value)

    def add(self, address: int, value: int, now: int) -> None:
        last = self.history[address][1][-1] if address in self.history else EMPTY
        self.store(address, last + value & EMPTY, now)

    def load(self, address: int, now: int) -> int:
        """What a load issued at ``now`` returns."""
        at = now + latencies.LOAD_SAMPLES_L2
        if address in self.history:
            return self._seen(address, at)[1]
        slot = self._slot(address)
        candidates = self.own.get((slot, address % 16)) or self.own_of_slot.get(slot)
        if not candidates:
            return EMPTY
        return min(self._seen(own, at) for own in candidates)[1]

    def _seen(self, address: int, at: int) -> tuple[int, int]:
        times, values = self.history[address]
        i = bisect_right(times, at)
        return (times[i - 1], values[i - 1]) if i else (-1, EMPTY)


class Mailbox:
    """An mbarrier that other blocks' st.async complete: as soon after this block's own as the microbenchmark says."""

    def __init__(self, blocks: int, received_bytes: int) -> None:
        base = latencies.CLUSTER_EXCHANGE_16 if blocks > 8 else latencies.CLUSTER_EXCHANGE
        self.base, self.transfer = base, int(received_bytes / latencies.CLUSTER_BYTES)
        self.first: dict[int, int] = {}  # by publication: the first and the last own store
        self.last: dict[int, int] = {}
        self.seen: dict[int, int] = defaultdict(int)  # by warp: the phases that it has seen complete

    def send(self, warp: int, now: int) -> None:
        number = self.seen[warp]
        self.first.setdefault(number, now)
        self.last[number] = max(now, self.last.get(number, 0))

    def complete_at(self, warp: int) -> int | None:
        """When the phase that this warp waits for completes; None while nothing of it has been sent."""
        number = self.seen[warp]
        if number not in self.first:
            return None
        return max(self.first[number] + self.base + self.transfer, self.last[number] + self.base)
