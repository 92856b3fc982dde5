"""Rows of JSON: an object on each line, an array of them, or an object that holds the array.

What JSON leaves open is refused, not guessed: a key that stands twice, NaN and the infinities.
Numbers keep the text that they were written as.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from posttrain_recipes.datasets.faults import FileError, RowError
from posttrain_recipes.datasets.formats import recognise
from posttrain_recipes.datasets.messages import Row, is_message
from posttrain_recipes.datasets.numbers import parse_float, parse_int

Line = tuple[int, Row | RowError]

_TRAILING_COMMA = re.compile(r",\s*[}\]]")
_MINUS_ZERO = re.compile(r"-0(?![\d.eE-])")

# --- values --------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise RowError(f"has the key '{key}' twice in one object; keep one of them")
            seen.add(key)
    return made


def _constant(name: str) -> NoReturn:
    raise RowError(f"has {name}, which is no number in JSON; leave it out or write null")


_FAST = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=parse_float, parse_constant=_constant
)
# A function for every integer costs time, and only `-0` and thousands of digits need it.
_EXACT = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=parse_float,
    parse_int=parse_int,
    parse_constant=_constant,
)
_PASS = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
"""Finds where a value ends, whatever is in it."""


def parse(text: str) -> Any:
    """The value that `text` is.

    Raises:
        json.JSONDecodeError: it is no JSON.
        RecursionError: it is nested too deep.
        RowError: a key stands twice in an object, or NaN or an infinity is in it.
    """
    if "-0" in text and _MINUS_ZERO.search(text):
        return _EXACT.decode(text)
    try:
        value, end = _FAST.raw_decode(text)
        return value if end == len(text) else _FAST.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _EXACT.decode(text)


def decoded(raw: bytes) -> str:
    """Bytes of a file as text. Raises `RowError` where they are none."""
    if (nul := raw.find(b"\0")) >= 0:
        raise RowError(
            f"has a NUL byte at byte {nul + 1}; the file is damaged, or not text: remove the line"
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8, perhaps: iconv -f latin1 -t UTF-8"
        ) from None


# --- files ---------------------------------------------------------------------------------------


def json_lines(lines: Iterable[bytes]) -> Iterator[Line]:
    """Rows of a file with an object on each line."""
    seen = False
    for number, raw in enumerate(lines, 1):
        try:
            text = decoded(raw).strip()
        except RowError as error:
            yield number, error
            continue
        if not text:
            continue
        if not seen and text[0] == "[":
            yield number, RowError("is a JSON array; name the file .json to have it read whole")
            return
        if not seen and text == "{":
            yield number, RowError("breaks off after '{'; write each object on one line: jq -c")
            return
        seen = True
        yield number, _line(text)


def json_line(raw: bytes) -> Row | RowError:
    """The row of one line of a file, or what is wrong with it."""
    try:
        return _line(decoded(raw).strip())
    except RowError as error:
        return error


def _line(text: str) -> Row | RowError:
    try:
        return _row(parse(text))
    except json.JSONDecodeError as error:
        return RowError(_not_json(error))
    except (ValueError, RecursionError) as error:  # numbers too long, nesting too deep
        return RowError(f"is not JSON that can be read: {error}")
    except RowError as error:
        return error


def json_whole(lines: Iterable[bytes]) -> Iterator[Line]:
    """Rows of a `.json` file: an array, an object that holds one, or an object a line after all."""
    lines = iter(lines)
    front: list[bytes] = []
    for raw in lines:
        front.append(raw)
        if raw.strip():
            break
    first = front[-1].strip() if front else b""
    if first.startswith(b"{") and _is_object(first):
        # An object a line is read a line at a time, however large the file is.
        more = next((raw for raw in _kept(lines, front) if raw.strip()), None)
        if more is not None:
            yield from json_lines(itertools.chain(front, lines))
            return
    raw = b"".join(itertools.chain(front, lines))
    try:
        text = decoded(raw)
    except RowError as error:
        if first.startswith(b"{"):
            yield from json_lines(raw.split(b"\n"))
        else:
            yield 0, error
        return
    at = _Reader(text)
    opening = at.skip()
    if opening == "[":
        yield from _items(at)
    elif opening != "{":
        yield from json_lines(raw.split(b"\n"))
    else:
        try:
            found = _held(at)
        except json.JSONDecodeError as error:
            if error.pos >= len(text.rstrip()):
                yield error.lineno, FileError(_not_json(error))
            else:
                yield from json_lines(raw.split(b"\n"))
        except RecursionError:
            yield from json_lines(raw.split(b"\n"))
        except RowError as error:
            yield at.line, error
        else:
            yield from found


def _kept(lines: Iterator[bytes], front: list[bytes]) -> Iterator[bytes]:
    for raw in lines:
        front.append(raw)
        yield raw


def _is_object(raw: bytes) -> bool:
    try:
        return _PASS.raw_decode(raw.decode())[1] > 0
    except (ValueError, RecursionError):
        return False


class _Reader:
    """A place in a text, with the number of its line."""

    def __init__(self, text: str, at: int = 0, line: int = 1) -> None:
        self.text = text
        self.at = at
        self.line = line
        self._exact = _MINUS_ZERO.search(text) is not None

    def skip(self, characters: str = " \t\r\n") -> str:
        """Pass `characters`; return the one that follows, empty at the end."""
        text = self.text
        while self.at < len(text) and text[self.at] in characters:
            self.line += text[self.at] == "\n"
            self.at += 1
        return text[self.at : self.at + 1]

    def value(self, decoder: json.JSONDecoder | None = None) -> Any:
        """The value that begins here, without going past it; `self.end` is where it ends.

        Raises `json.JSONDecodeError`, `RecursionError`, `RowError`.
        """
        try:
            chosen = decoder or (_EXACT if self._exact else _FAST)
            value, self.end = chosen.raw_decode(self.text, self.at)
        except json.JSONDecodeError:
            raise
        except RowError:
            self.end = _PASS.raw_decode(self.text, self.at)[1]
            raise
        except ValueError:
            value, self.end = _EXACT.raw_decode(self.text, self.at)
        return value

    def go_past(self) -> None:
        """Go to the end of the value that was read."""
        self.line += self.text.count("\n", self.at, self.end)
        self.at = self.end


def _items(at: _Reader) -> Iterator[Line]:
    """The objects of the array that begins here, and whether anything follows it."""
    yield from _array(at)
    if at.text[at.at - 1 : at.at] == "]" and at.skip():
        yield at.line, FileError("more follows the array; keep one array in a file")


def _array(at: _Reader) -> Iterator[Line]:
    at.at += 1
    while (following := at.skip(", \t\r\n")) != "]":
        if not following:
            yield at.line, RowError("the array is never closed; was the file cut short?")
            return
        try:
            row: Row | RowError = _row(at.value())
        except json.JSONDecodeError as error:
            yield error.lineno, RowError(_not_json(error))
            return
        except RecursionError as error:
            yield at.line, RowError(f"is not JSON that can be read: {error}")
            return
        except RowError as error:
            row = error
        yield at.line, row
        at.go_past()
    at.at += 1


def _held(at: _Reader) -> Iterator[Line]:
    """The rows of one object: those of the list of objects in it, or the object itself."""
    start = at.line
    whole: dict[str, Any] = {}
    lists: dict[str, tuple[int, int]] = {}
    at.at += 1
    while at.skip(", \t\r\n") != "}":
        key = at.value(_PASS)
        at.go_past()
        if at.skip() != ":" or not isinstance(key, str):
            raise json.JSONDecodeError("Expecting ':' delimiter", at.text, at.at)
        at.at += 1
        is_list = at.skip() == "["
        if key in whole:
            raise FileError(f"has the key '{key}' twice in one object; keep one of them")
        # The rows of a list tell their own faults, each with its line.
        value = whole[key] = at.value(_PASS if is_list else None)
        if is_list and value and isinstance(value[0], dict) and not all(map(is_message, value)):
            lists[key] = (at.at, at.line)
        at.go_past()
    at.at += 1
    if at.skip():
        raise json.JSONDecodeError("Extra data", at.text, at.at)
    if _known(whole) or not lists:
        try:
            return iter([(start, _row(parse(at.text.strip())))])
        except RowError as error:
            return iter([(start, error)])
    if len(lists) > 1:
        names = ", ".join(f"'{key}'" for key in lists)
        example = next(iter(lists))
        raise FileError(
            f"is one object with several lists of objects ({names}); write each to a file of its "
            f"own: jq .{example}"
        )
    ((place, line),) = lists.values()
    return _array(_Reader(at.text, place, line))


def _known(row: Row) -> bool:
    try:
        recognise(row)
    except RowError:
        return False
    return True


def _row(value: Any) -> Row:
    if isinstance(value, dict):
        return value
    names = {list: "a list", str: "text", type(None): "null", bool: "a boolean"}
    kind = names.get(type(value), "a number")
    raise RowError(f'is {kind}, not an object; a record reads {{"field": "value", ...}}')


def _not_json(error: json.JSONDecodeError) -> str:
    """Said in our own words: those of the json module differ between Python versions."""
    text, at = error.doc, error.pos
    comma = _TRAILING_COMMA.search(text, max(0, at - 2), at + 3)
    if comma is not None:
        return f"is not JSON: a comma before the closing bracket at {_column(text, comma.start())}"
    if error.msg.startswith("Unterminated") or at >= len(text.rstrip()):
        return f"is not JSON: it breaks off after {_column(text, len(text.rstrip()) - 1)}"
    if text[at] == "'":
        return f"is not JSON: single quotes at {_column(text, at)}; write double quotes"
    if error.msg.startswith("Extra data"):
        where = _column(text, at)
        return f"is not JSON: more follows the object at {where}; write one object a line"
    if error.msg.startswith("Invalid control"):
        return f"is not JSON: a raw control character at {_column(text, at)}; write \\n or \\t"
    return f"is not JSON: did not expect {text[at]!r} at {_column(text, at)}"


def _column(text: str, at: int) -> str:
    return f"column {at - text.rfind(chr(10), 0, at)}"
