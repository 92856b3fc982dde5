"""The tool of tool_use.yaml."""

import re


def calculate(expression: str) -> int:
    """What a product, a sum or a difference of two whole numbers is, as 12 * 34."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*([-+*])\s*(\d{1,9})\s*", expression)
    if found is None:
        raise ValueError("write two numbers, as 12 * 34")
    a, sign, b = found.groups()
    return {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
