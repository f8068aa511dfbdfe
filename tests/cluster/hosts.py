"""Hosts of their own on one machine: network namespaces, joined by a cable (a veth pair) that can be pulled out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

PREFIX = "10.203.77"


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface."""

    name: str
    address: str
    interface: str = "cable"

    def command(self, *words: str) -> list[str]:
        """The command line that runs ``words`` on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def unplug(self) -> None:
        """Nothing reaches this host any more, and nothing leaves it; nobody is told."""
        ip("-n", self.name, "link", "set", self.interface, "down")

    def plug_in(self) -> None:
        """Put the cable back."""
        ip("-n", self.name, "link", "set", self.interface, "up")

    def die(self) -> None:
        """As if its power had failed: nobody is told, and whatever runs on this host is gone."""
        with suppress(subprocess.CalledProcessError):  # it has no cable yet
            self.unplug()
        listing = ["ip", "netns", "pids", self.name]
        while pids := subprocess.run(listing, check=False, capture_output=True, text=True).stdout.split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.01)


def ip(*words: str) -> None:
    """iproute2; ``CalledProcessError`` with what it said."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str | None:
    """What is missing for hosts of this kind; None where they can be made."""
    if shutil.which("ip") is None:
        return "needs iproute2's ip"
    name = f"prnn{os.getpid()}"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "cable", "type", "veth", "peer", "name", "other")
        finally:
            ip("netns", "delete", name)
    except subprocess.CalledProcessError as error:
        return f"may not make network namespaces ({error.stderr.strip()}): run as root, with CAP_SYS_ADMIN"
    return None


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts and the cable between them; both are gone afterwards, with whatever still runs on them."""
    hosts = [Host(f"prnn{os.getpid()}-{number}", f"{PREFIX}.{number}") for number in (1, 2)]
    one, two = hosts
    try:
        for host in hosts:
            ip("netns", "add", host.name)
            ip("-n", host.name, "link", "set", "lo", "up")
        ip("-n", one.name, "link", "add", one.interface, "type", "veth", "peer", two.interface, "netns", two.name)
        for host in hosts:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            host.plug_in()
        yield one, two
    finally:
        for host in hosts:
            host.die()
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
