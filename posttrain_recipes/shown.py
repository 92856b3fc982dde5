"""What is shown of text that others wrote: data, models, servers, recipes, the environment.

All that ptl prints, logs, and writes into reports goes through `plain`: a reply that moves the
cursor, sets a terminal's title or turns the direction of what follows is shown as what it is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control: ESC, CR, BEL, and C1, which some terminals obey
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e"  # format characters
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # zero width, directions
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0001\U000e0020-\U000e007f"  # tags, which spell text that nobody sees
    "\u2028\u2029"  # ends of lines to some programs, and not to others
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\uffa0\U000e0100-\U000e01ef"  # blank
    "\u2800\U00016fe4\U0001d159"  # blank too, though letters, signs and marks by their category
    "\ufe00-\ufe0f"  # select a form of the character before: see `_selects`
    "\ud800-\udfff"  # halves of characters, which no file or terminal takes
    "]"
)

_EMOJI = re.compile(
    "[\xa9\xae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23ff\u24c2\u25aa-\u25fe\u2600-\u27bf"
    "\u2934\u2935\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
_FORMS = re.compile(
    "[\u2200-\u22ff\u2a00-\u2aff\u3001\u3002\u3400-\u9fff\uf900-\ufaff\uff01-\uff1f]"
)
"""Mathematical signs, and characters of East Asia, of which there are several forms."""


def plain(text: str) -> str:
    r"""`text` with all that is not seen as an escape: ESC as `\u001b`. Newline and tab stay.

    These are control and format characters (Unicode's Cc, Cf, Zl, Zp), those that are blank, and
    lone surrogates. The escapes are those of JSON, so that JSON stays JSON and means the same.
    """
    return _HIDDEN.sub(_escape, text)


def line(text: str) -> str:
    r"""`plain` on one line: newline as `\n`, tab as `\t`. For a cell of a table, or a name."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xFE00 <= code <= 0xFE0F and _selects(found.string, found.start()):
        return found[0]
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _selects(text: str, at: int) -> bool:
    """Whether the variation selector there follows what has the form that it selects; elsewhere it
    is seen by nobody, and may spell text."""
    before = text[at - 1] if at else ""
    if text[at] in "\ufe0e\ufe0f":
        keycap = before.isascii() and before in "0123456789#*" and text[at + 1 : at + 2] == "\u20e3"
        return bool(_EMOJI.match(before)) or (bool(before) and keycap)
    return text[at] in "\ufe00\ufe01\ufe02" and bool(_FORMS.match(before))


class PlainFormatter(logging.Formatter):
    """Formats the lines of a log without control characters and secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and a traceback where there is one."""
        return plain(redact(super().format(record)))


# --- Markdown ------------------------------------------------------------------------------------

_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", **{mark: f"\\{mark}" for mark in "\\`|["}})
_NUMBER = re.compile(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?\s*%?(\s*±\s*[\d.]+%?)?", re.I)
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a cell begins with that a spreadsheet computes; full-width forms too."""


def markdown(text: str) -> str:
    """Text of others in a line of Markdown: neither markup, nor HTML, nor the end of the line."""
    return plain(text).translate(_MARKUP).replace("\t", " ").replace("\n", "<br>")


def cell(text: str, width: int = 300) -> str:
    """`markdown` for a cell of a table: it cannot end the cell either, and is no formula to the
    spreadsheet that the table is pasted into. Numbers stay numbers."""
    text = text if len(text) <= width else text[:width] + "…"
    shown = markdown(text.strip())
    return f"'{shown}" if shown.startswith(_FORMULA) and not is_number(text) else shown


def field(text: str) -> str:
    """Text of others in a field of CSV or TSV: on one line, and no formula to a spreadsheet."""
    shown = line(text.strip())
    return f"'{shown}" if shown.startswith(_FORMULA) and not is_number(text) else shown


def is_number(text: str) -> bool:
    """Whether it is a number as people write it: `-0.5`, `1e-4`, `+34.4 ±5.1`; a dash is none."""
    return text.strip() == "-" or _NUMBER.fullmatch(text.strip()) is not None


def code(text: str) -> str:
    """Text of others as code in a line of Markdown."""
    return f"`{line(text).replace('`', chr(39))}`"


# --- secrets -------------------------------------------------------------------------------------

_SECRET_NAME = re.compile(
    r"(?i)(?!(OLD)?PWD$)"  # the shell's directories
    r"(.*_|.*API|PG|DB|)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?)(_|$)"
)
_SHORTEST = 6
"""Characters of a secret that is left out; shorter ones would take ordinary words along."""
_USER_INFO = re.compile(
    r"(?<=://)[^/?#\s]{0,2000}@"
    r"|(?i:(?<=http://)|(?<=https://))[^/?#\s:@]{1,2000}:(?!\d{1,5}(?:[/?#]|$))[^\s'\"]{0,2000}@"
)
"""The second is of a password with a slash or a question mark in it, where a port would stand."""
_PASSWORD = re.compile(
    r"(?i)(?<![a-z0-9+.-])(?!https?:|tinker:)([a-z][a-z0-9+.-]*://)[^/:@\s]{0,2000}:[^@\s]{0,2000}@"
)
"""In addresses of databases, whose passwords may have a slash in them."""
_NO_ADDRESS = re.compile(
    r"(?i)(?<![\w@/\\.%+-])((?:https?:[\\/]*)?)[\w.%+-]+:[^\s/\\:@'\"]+@"
    r"(?=[\w\[][\w.:\[\]-]*(?:[/\\\s'\",;)]|$))"
)
"""`user:password@host` without a scheme, or with one whose slashes are too many or too few."""
_QUERY = re.compile(
    r"(?i)([?&#][\w.-]*(?:api[_-]?key|token|secret|password|passwd|pwd|signature|\bsig)=)[^&\s]+"
)


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without users and passwords in addresses, and without what the environment keeps
    secret (variables whose name says that they hold a key, a token or a password)."""
    return _without(text, _secrets(environ))


def redact_all(data: Any, exact: Collection[str] = ()) -> Any:
    """Data as JSON has them, with every text redacted but those below the keys `exact`."""
    secrets = _secrets(os.environ)

    def redacted(data: Any) -> Any:
        if isinstance(data, str):
            return _without(data, secrets)
        if isinstance(data, Mapping):
            return {k: v if k in exact else redacted(v) for k, v in data.items()}
        return [redacted(part) for part in data] if isinstance(data, list | tuple) else data

    return redacted(data)


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """What is secret in an environment; the longest first, since one may be a part of another."""
    found = {v for name, v in environ.items() if len(v) >= _SHORTEST and _is_secret(name)}
    return sorted(found, key=len, reverse=True)


def _without(text: str, secrets: Collection[str]) -> str:
    for value in secrets:
        text = text.replace(value, "***")
    if "@" in text:
        text = _USER_INFO.sub("***@", _PASSWORD.sub(r"\1***@", text))
        text = _NO_ADDRESS.sub(r"\1***@", text)
    return _QUERY.sub(r"\1***", text)


def is_address(text: str) -> bool:
    """Whether a text that should name a model, a file or a host is an address. It may have a
    password in it, so it is to be refused without being repeated."""
    scheme, colon, rest = text.partition(":")
    return bool(colon) and (rest.startswith("//") or scheme.lower() in ("http", "https"))


@cache
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.match(name) is not None
