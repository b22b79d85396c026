"""Decide between online and offline within seconds, before W&B is started.

W&B itself waits 100 s for a server that refuses or hangs, on a job that may hold many GPUs.
"""

import importlib.util
import netrc
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from segdist.core.errors import UserError
from segdist.tracking.config import TrackingConfig

Mode = Literal["online", "offline", "off"]


def choose_mode(config: TrackingConfig, base_url: str, environ: Mapping[str, str] = os.environ) -> tuple[Mode, str]:
    """The mode, and the reason if it isn't the requested one.

    Raises:
        UserError: `--wandb online` without a key.
    """
    wanted = config.wandb
    if wanted == "auto":
        if (mode := environ.get("WANDB_MODE")) in ("offline", "dryrun"):
            return "offline", f"WANDB_MODE={mode}"
        if environ.get("WANDB_MODE") == "disabled":
            return "off", "WANDB_MODE=disabled"
    if wanted in ("off", "offline"):
        return wanted, ""
    if not has_key(base_url, environ):
        if wanted == "online":
            require_key(base_url, environ)
        return "offline", "no W&B key"
    problem = probe(base_url, config.start_timeout)
    return ("offline", problem) if problem else ("online", "")


def has_package() -> bool:
    """True if the package wandb is installed."""
    return importlib.util.find_spec("wandb") is not None


def require_package(config: TrackingConfig) -> None:
    """For `--wandb online` and `--wandb offline`.

    Raises:
        UserError: the package wandb is not installed.
    """
    if config.wandb in ("online", "offline") and not has_package():
        raise UserError(f"--wandb {config.wandb}: W&B is not installed; pip install wandb, or use --wandb off")


def require_key(base_url: str, environ: Mapping[str, str] = os.environ) -> None:
    """For `--wandb online`.

    Raises:
        UserError: there is no key for this server.
    """
    if not has_key(base_url, environ):
        raise UserError(
            f"--wandb online: no W&B key for {base_url}; set WANDB_API_KEY, run `wandb login`, or use --wandb offline"
        )


def has_key(base_url: str, environ: Mapping[str, str] = os.environ) -> bool:
    """True if W&B would find credentials for this server without prompting."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environ.get("HOME", "~")).expanduser()
    files = [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(file).authenticators(urlsplit(base_url).netloc):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def probe(base_url: str, seconds: float) -> str:
    """Check whether the server responds; "" if it does, else what went wrong.

    The request takes the same route as W&B's (proxies from the environment), and any HTTP status counts as a response.
    """
    # A thread, because neither name resolution nor a server that trickles bytes respects a socket's time-out.
    problems: list[str] = []
    thread = threading.Thread(target=lambda: problems.append(_ask(base_url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"{base_url} didn't answer within {seconds:g} s"


def _ask(base_url: str, seconds: float) -> str:
    try:
        with urllib.request.urlopen(f"{base_url.rstrip('/')}/healthz", timeout=seconds):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError) as error:
        # URLError wraps the useful reason ("Connection refused").
        return f"{base_url} can't be reached ({getattr(error, 'reason', error)})"
