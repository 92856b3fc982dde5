"""Well-known chat templates, for base models that have none: `renderer: {chat_template: chatml}`.

Each file names its source. They show system, user and assistant messages, and neither tools nor
reasoning, which is refused where data have it.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent

NAMED: dict[str, Path] = {path.stem: path for path in sorted(_HERE.glob("*.jinja"))}
"""Template files, by name."""
