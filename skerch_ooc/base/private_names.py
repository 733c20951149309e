"""Names of unpublished files: unique, and stating the process that writes them."""

from __future__ import annotations

import os
import re
import secrets
import socket
from pathlib import Path

PRIVATE_PREFIX = ".tmp-"
PRIVATE_NAME = re.compile(
    rf"{re.escape(PRIVATE_PREFIX)}(?P<host>.+)-(?P<pid>[1-9]\d{{0,8}})-[0-9a-f]{{8}}"
)
"""Matches the names that :func:`private_name` makes."""


def private_name(folder: Path) -> Path:
    """Makes a unique name in ``folder``, which listings of published files leave out."""
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return folder / f"{PRIVATE_PREFIX}{token}"


def is_private(name: str) -> bool:
    """Whether a name is that of an unpublished file, as :func:`private_name` makes it."""
    return name.startswith(PRIVATE_PREFIX)
