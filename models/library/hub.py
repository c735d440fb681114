"""The Hugging Face hub, for models that are named by id: check once whether it answers."""

from __future__ import annotations

import contextlib
import ssl
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from unittest import mock
from urllib.error import HTTPError, URLError

import huggingface_hub

from console.progress import console

PATIENCE = 3.0  # seconds that the hub has to answer


@contextlib.contextmanager
def hub_or_cache() -> Iterator[None]:
    """Inside, an unreachable hub is not asked: its client would try each file six times, for up to a minute.

    Cached files are still found. HF_HUB_OFFLINE=1 skips the check.
    """
    if huggingface_hub.is_offline_mode() or _answers(huggingface_hub.constants.ENDPOINT):
        yield
        return
    console.print(f"note: {huggingface_hub.constants.ENDPOINT} does not answer: only what was fetched before is there")
    with mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        yield


def _answers(address: str) -> bool:
    """Whether a server answers, through the proxies of the environment."""
    if "all" in urllib.request.getproxies():  # perhaps one that only the hub's own client can speak to
        return True
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # it answers; certificates are the client's to judge
    except (OSError, ValueError, HTTPException):  # ValueError: an address without https://
        return False
    return True
