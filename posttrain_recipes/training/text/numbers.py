"""Numbers as people write them, in running text and in LaTeX, read by their value.

`1,000`, `1{,}000`, `1\\,000`, `-3.5`, `.5`, `1e-3`, `2 x 10^{4}`, `2^{10}`, `1/2`, `½`,
`\\frac{1}{2}`, `2 1/2`, `50%`, `$3.50`, `12 km`. Values are exact (fractions), so that comparing
them is. What needs algebra (`\\sqrt{2}`, `12\\pi`) is no number here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SCALED = rf"(?:{_PLAIN})(?:[eE][+-]?\d{{1,4}}(?!\d))?"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\d)])[-+])?"
    rf"(?:(?P<whole>\d+) (?P<top>\d+)/(?P<under>\d+)|(?P<over>{_SCALED})(?:/(?P<by>{_SCALED}))?)"
    rf"(?P<percent> ?%)?"
)
"""A minus between two numbers takes one from the other; it is not a sign."""
_WORDS = re.compile(r"(?:[A-Za-z°μµ²³€£¥$]|\^ ?[23])[\w°/²³^ .-]*")
"""A unit or a few words after a number."""
_POWER = re.compile(r"\^ ?[23]")

_APPLIED = re.compile(r"(?:\\(?:sqrt|log|ln|exp|sin|cos|tan)|√|\be *\^) *[{(\[]? *\Z")
_OF_UNIT = re.compile(r"(?<!\be)(?<=[a-z])\^ ?\{? ?\Z")
"""What makes a number the power of a unit, as in `12 cm^2`."""
_TIMES = re.compile(r" *(?:\\pi\b|\\sqrt\b|π|√)")
"""What makes a number a part of an expression, before and after it."""

_GOES_ON = re.compile(r" *(?:[-+*/=^×·÷<>]|\\[a-z]|x \d|to |or |and \d)")
"""What makes a number the first part of a sum or of several."""

_ARGUMENT = r"\s*(?:\{\s*([^{}]*?)\s*\}|(\d))"
_FRACTION = re.compile(rf"\\[dtc]?frac{_ARGUMENT}{_ARGUMENT}")
_TEN = re.compile(r"\s*(?:\\times|\\cdot|[x×*·])\s*10\s*\^\s*\{?\s*([+-]?\d+)\s*\}?")
_RAISED = re.compile(r"(?<![\w.^)}])(\d{1,4}) ?\^ ?(?:\{ ?(\d{1,2}) ?\}|(\d{1,2})(?!\d))")
_BETWEEN, _THOUSAND = r"(?<=\d)", r"(?=\d{3}(?!\d))"
_SPACED = re.compile(r"([-+]?\d{1,3})((?: \d{3})+)(?![\d/])")
"""A whole answer as `1 234 567`; in running text these may be numbers that stand side by side."""
_SCALES = {"thousand": "e3", "million": "e6", "billion": "e9", "trillion": "e12"}
_LATEX: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"\\(?:left|right|displaystyle)\b"), ""),
    (re.compile(rf"{_BETWEEN}(?:\\[,;:! ]|~|[\u00a0\u202f\u2009'’_]|\{{,\}}){_THOUSAND}"), ","),
    (re.compile(r",\\!"), ","),
    (re.compile(r"\\[,;:! ]|~|\u00a0|\u202f|\u2009"), " "),
    (re.compile(r"\\[()\[\]]|\\?\$"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b"), "°"),
    (re.compile(r"[\u2212\u2013\u2012]"), "-"),
    (re.compile(r"(?<=\d)(?=[¼-¾⅐-⅞])"), " "),  # 1½ is one and a half
    (re.compile("[¼-¾⅐-⅞]"), lambda match: unicodedata.normalize("NFKC", match[0])),
    (re.compile(r"\u2044|(?<=\d) / (?=\d)"), "/"),
    (re.compile(r"(?<=\d) ?per ?cent\b"), "%"),
    (
        re.compile(r"\{\s*(\d+)\s*\\over\s*(\d+)\s*\}|\{(\d+)\}\s*/\s*\{(\d+)\}"),
        lambda match: f"{match[1] or match[3]}/{match[2] or match[4]}",
    ),
    (re.compile(r"(?<![\d)] )\b(?:minus|negative) (?=[$€£¥]?[\d.])", re.IGNORECASE), "-"),
    (
        re.compile(
            rf"(?<![\d/,.eE^])({_PLAIN}) *(thousand|million|billion|trillion)\b", re.IGNORECASE
        ),
        lambda match: match[1] + _SCALES[match[2].lower()],
    ),
)


@dataclass(frozen=True)
class Number:
    """A number that was read."""

    value: Fraction
    percent: bool = False
    """Whether a percent sign stood after it; `value` is then of the number before the sign."""

    def equals(self, other: Number, relative: float = 0.0, absolute: float = 0.0) -> bool:
        """Whether both are the same by value.

        50% is 0.5, and is 50 where the other one leaves the sign out, as answers often do.

        Args:
            relative: how far this one may be off, as a share of `other`.
            absolute: how far it may be off.
        """
        pairs = [(self.value, other.value)]
        if self.percent != other.percent:
            pairs.append(
                (self.value / 100, other.value) if self.percent else (self.value, other.value / 100)
            )
        return any(abs(a - b) <= max(abs(b) * Fraction(relative), Fraction(absolute))
                   for a, b in pairs)  # fmt: skip


def plain(text: str) -> str:
    """Text with LaTeX, typographic signs and powers of ten as plain characters."""
    for pattern, by in _LATEX:
        text = pattern.sub(by, text)
    text = _FRACTION.sub(_slashed, text)
    text = _TEN.sub(r"e\1", text)
    return _RAISED.sub(lambda match: str(int(match[1]) ** int(match[2] or match[3])), text)


def _slashed(match: re.Match[str]) -> str:
    top, under = (match[1] or match[2] or ""), (match[3] or match[4] or "")
    before = match.string[: match.start()]
    if under.startswith("-"):
        top, under = top.removeprefix("-") if top.startswith("-") else f"-{top}", under[1:]
    gap = " " if before[-1:].isdigit() else ""  # 2\\frac{1}{2} is two and a half
    return f"{gap}{top}/{under}" if _number(top) and _number(under) else match[0]


def numbers_in(text: str) -> list[str]:
    """The numbers of a text in their order, as they stand there made plain."""
    return [match[0].strip() for match in _NUMBER.finditer(plain(text))]


def last_number(text: str) -> str | None:
    """The last of them; None where there is none."""
    found = numbers_in(text)
    return found[-1] if found else None


def last_value(text: str) -> Number | None:
    """The last number by its value; None where there is none, or where it is a part of an
    expression that needs algebra, as 12 is of `12\\pi` and 2 of `\\sqrt{2}`."""
    body, match = plain(text), None
    for one in _NUMBER.finditer(body):
        if not _OF_UNIT.search(body, max(0, one.start() - 6), one.start()):
            match = one
    if match is None or _APPLIED.search(body, max(0, match.start() - 12), match.start()):
        return None
    return None if _TIMES.match(body, match.end()) else read_number(match[0])


def leading_number(text: str) -> Number | None:
    """The number that a text begins with; None where a sum or the like goes on after it."""
    body = _bare(text)
    match = _NUMBER.match(body)
    if match is None or re.match(
        r" *(?:[-+*/=^×·÷<>]|\\[a-z]|x \d|to |or |and \d)", body[match.end() :]
    ):
        return None
    return _read(match)


def read_number(text: str) -> Number | None:
    """A text that is one number, with a sign, currency, unit or a full stop about it.

    None where it is anything else: two numbers, a sum, words before a number.
    """
    body = _bare(text)
    match = _NUMBER.match(body)
    if match is None:
        return None
    rest = body[match.end() :].strip()
    if rest and (_WORDS.fullmatch(rest) is None or _NUMBER.search(_POWER.sub("", rest))):
        return None
    return _read(match)


def _bare(text: str) -> str:
    """A text made plain, without marks, currency and full stop about it."""
    body = plain(text).strip().strip("*_`").strip().rstrip(".").strip()
    body = re.sub(r"^([-+]?)\s*[$€£¥]\s*", r"\1", body)
    if spaced := _SPACED.match(body):
        body = spaced[1] + spaced[2].replace(" ", "") + body[spaced.end() :]
    return body


def _number(text: str) -> Number | None:
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else _read(match)


def _read(match: re.Match[str]) -> Number | None:
    try:
        if match["whole"] is not None:
            value = int(match["whole"]) + Fraction(int(match["top"]), int(match["under"]))
        else:
            value = _exact(match["over"]) / (_exact(match["by"]) if match["by"] else 1)
    except (ZeroDivisionError, ValueError):  # a value with thousands of digits
        return None
    return Number(-value if match["sign"] == "-" else value, match["percent"] is not None)


def _exact(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
