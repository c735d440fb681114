"""Google Drive's page before a large file, as it looked in 2024 and before."""

import pytest

from console.errors import InputError
from storage.drive import confirmed, file_address, page_address

NOW = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/><input type="hidden" name="id" value="1-Xy">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="8e5c&amp;1"></form><input name="search" value="no"></body></html>"""

BEFORE = '<a id="uc-download-link" href="/uc?export=download&amp;id=1-Xy&amp;confirm=AbC_1">Download anyway</a>'


def test_addresses():
    assert file_address("1-Xy") == "https://drive.usercontent.google.com/download?id=1-Xy&export=download&confirm=t"
    assert page_address("1-Xy") == "https://drive.google.com/file/d/1-Xy/view"


def test_the_form_with_its_hidden_fields():
    expected = "https://drive.usercontent.google.com/download?id=1-Xy&export=download&confirm=t&uuid=8e5c%261"
    assert confirmed(NOW, file_address("1-Xy")) == expected


def test_the_older_link():
    expected = "https://drive.google.com/uc?export=download&id=1-Xy&confirm=AbC_1"
    assert confirmed(BEFORE, "https://drive.google.com/uc?export=download&id=1-Xy") == expected


@pytest.mark.parametrize(
    ("action", "taken"),
    [
        ("https://drive.usercontent.google.com/download", True),
        ("/download", True),
        ("https://doc-0.googleusercontent.com/download", True),
        ("https://evilgoogle.com/download", False),
        ("https://drive.google.com.example.org/download", False),
        ("http://drive.google.com/download", False),
        ("file:///etc/passwd", False),
    ],
)
def test_the_form_must_lead_to_google(action, taken):
    page = f'<form id="download-form" action="{action}"><input type="hidden" name="id" value="1"></form>'
    if taken:
        assert confirmed(page, "https://drive.usercontent.google.com/download?id=1").endswith("/download?id=1")
        return
    with pytest.raises(InputError, match="which is not Google Drive"):
        confirmed(page, "https://drive.usercontent.google.com/download?id=1")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("<p>Sorry, too many users have viewed or downloaded this file recently.</p>", "too often today: try again"),
        ("<title>Google Drive - Quota exceeded</title>", "too often today: try again"),
        ('<a href="https://accounts.google.com/ServiceLogin">Sign in</a>', "asks for a login"),
        ("<p>hello</p>", "offers no download"),
    ],
)
def test_pages_without_a_download(page, words):
    with pytest.raises(InputError, match=words):
        confirmed(page, file_address("1"))
