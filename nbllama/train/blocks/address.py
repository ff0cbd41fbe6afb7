"""Parse `--ray ADDRESS`, and check that the connection to the workers is protected."""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

from nbllama.errors import UsageError, shown

_TOKEN = os.path.join("~", ".ray", "auth_token")
_HOST = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\]):(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """A parsed `--ray` address.

    `local` is the number of workers to start on this machine, or 0 to use a cluster.
    """

    text: str
    local: int = 0


def parse_address(text: str) -> Address:
    """Parse `auto`, `local:N` or `HOST:PORT`. Raises `UsageError` for anything else."""
    if text == "auto":
        return Address(text)
    if text.startswith("local:") or text == "local":
        count = text.partition(":")[2]
        if not count.isdecimal() or not 1 <= int(count) <= 1024:
            raise UsageError(
                f"--ray {shown(text)}: pass a number of workers from 1 to 1024, for example local:2"
            )
        return Address(text, int(count))
    found = _HOST.fullmatch(text)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise UsageError(
            f"--ray {shown(text)}: pass auto, local:N for N workers on this machine, or the "
            "HOST:PORT of a cluster"
        )
    return Address(text)


def check_token(address: Address, env: Mapping[str, str] = os.environ) -> None:
    """Raise `UsageError` if the cluster does not use Ray's token authentication.

    Without authentication, anyone who can reach the cluster's ports can run code on its machines.
    """
    if address.local:
        return
    path = os.path.expanduser(env.get("RAY_AUTH_TOKEN_PATH") or _TOKEN)
    token = bool(env.get("RAY_AUTH_TOKEN")) or os.path.isfile(path)
    if env.get("RAY_AUTH_MODE", "").lower() != "token" or not token:
        raise UsageError(
            f"--ray {shown(address.text)}: without a token, anyone who can reach the cluster's "
            "ports can run code on its machines; set RAY_AUTH_MODE=token and the same "
            "RAY_AUTH_TOKEN on "
            "every machine (docs/many-machines.md)"
        )


def protect_local(env: MutableMapping[str, str] = os.environ) -> str:
    """Choose a random token for a cluster on this machine, unless `env` already enables tokens.

    Ray's processes listen on all network interfaces, even for `local:N`. Ray reads the token
    settings from `env` when it is imported. Returns a warning if Ray has already been imported, and
    "" otherwise.
    """
    if env.get("RAY_AUTH_MODE", "").lower() == "token":
        return ""
    if "ray" in sys.modules:
        return (
            "warning: Ray was imported before this run, so no token protects its ports on this "
            "machine, and anyone who can reach them can run code; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN before Python starts"
        )
    env.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    return ""


def check_address(text: str) -> None:
    """Raise `UsageError` if the address cannot be used; an empty string means no address."""
    if text:
        check_token(parse_address(text))
