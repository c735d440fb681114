"""Google Drive's public files: their addresses, and the page it shows before a file too large for its virus scan."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from console.errors import InputError

HOSTS = (".google.com", ".googleusercontent.com")


def file_address(file_id: str) -> str:
    """Where the bytes of a file are."""
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


def page_address(file_id: str) -> str:
    """Where a browser shows the file."""
    return f"https://drive.google.com/file/d/{file_id}/view"


def confirmed(page: str, address: str) -> str:
    """The address that 'download anyway' on a confirmation page leads to; InputError where the page offers none.

    page: HTML. address: of the page; the target must be on the same host, or Google's.
    """
    form = _Form()
    form.feed(page)
    if form.action is None:
        raise InputError(f"cannot fetch {address}: Google Drive {_reason(page)}")
    target = urlsplit(urljoin(address, form.action))
    if target.netloc != urlsplit(address).netloc and not (
        target.scheme == "https" and f".{target.hostname}".endswith(HOSTS)
    ):
        raise InputError(f"cannot fetch {address}: its page leads on to {target.netloc}, which is not Google Drive")
    fields = dict(parse_qsl(target.query)) | form.fields
    return urlunsplit(target._replace(query=urlencode(fields), fragment=""))


def _reason(page: str) -> str:
    text = page.lower()
    if "quota" in text or "too many users" in text:
        return "has handed it out too often today: try again tomorrow"
    if "accounts.google.com" in text or "sign in" in text:
        return "asks for a login: the file is not public any more"
    return "answers with a page that offers no download"


class _Form(HTMLParser):
    """The download form with its hidden fields, or the older link."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form" and given.get("id") in ("download-form", "downloadForm"):
            self.action, self._inside = given.get("action", ""), True
        elif tag == "a" and given.get("id") == "uc-download-link" and self.action is None:
            self.action = given.get("href", "")
        elif tag == "input" and self._inside and given.get("name"):
            self.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._inside = False
