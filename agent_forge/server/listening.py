"""Addresses that a server listens on: bound before anything is opened, and this machine's by default."""

import socket
from ipaddress import ip_address

from agent_forge.core.errors import ConfigError

BACKLOG = 1024


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_host(host: str, option: str, advice: str) -> None:
    """Raise ConfigError for an address that other machines reach.

    option: what has named it. advice: what else its user has to do.
    """
    if not is_loopback(host):
        raise ConfigError(
            f"{option} {host} lets other machines in; add --allow-network if that is meant, "
            f"put TLS before it, {advice}"
        )


def reachable(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    bare = host.strip("[]")
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(bare, bare)


def bound(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a listening socket, which no child process inherits.

    option: what names the port. Raises ConfigError when the port is taken, or the host is not an
    address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only where the protocol is named. With it on, an answer in
    # two writes waits 40 ms for its client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            f"is another server running? take another {option}"
        ) from None
    return listener
