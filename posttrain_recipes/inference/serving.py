"""The embedded engine as a server that a Python program starts and ends."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, Self

from posttrain_recipes import models, private
from posttrain_recipes.atomic import require_writable
from posttrain_recipes.engines import Local
from posttrain_recipes.errors import UsageError
from posttrain_recipes.planning.renderers import TemplateError, read


class LocalServer:
    """A running server of this machine. It ends with its `with` block, by `close`, or with this
    process."""

    def __init__(self, base_url: str, api_key: str, models: Sequence[str], ends: ExitStack) -> None:
        self.base_url = base_url
        """For Tinker's SDK."""
        self.api_key = api_key
        self.models = tuple(models)
        """What is offered by name."""
        self._ends = ends

    @property
    def openai_base_url(self) -> str:
        """For OpenAI's client."""
        return f"{self.base_url}/v1"

    @property
    def environ(self) -> dict[str, str]:
        """What programs read: `subprocess.run(..., env={**os.environ, **server.environ})`."""
        return {
            "TINKER_BASE_URL": self.base_url,
            "TINKER_API_KEY": self.api_key,
            "OPENAI_BASE_URL": self.openai_base_url,
            "OPENAI_API_KEY": self.api_key,
        }

    def __repr__(self) -> str:
        return f"LocalServer({', '.join(self.models)} at {self.base_url})"  # without the key

    def close(self) -> None:
        """Finish what is accepted, and end. Safe to call again."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(
    offered: Sequence[str],
    home: Path,
    port: int = 0,
    chat_template: str | Path | None = None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> LocalServer:
    """Start the server on 127.0.0.1; it offers models, bundled ones by default.

    Args:
        offered: names, or NAME=DIRECTORY.
        home: its folder `engine` keeps the checkpoints.

    Raises:
        UsageError: a model or the template is none.
        PtlError: it did not start.
    """
    from posttrain_recipes.engine import launch

    named = named_models(offered, "a model")
    first = Path(next(iter(named.values())))
    engine = Local(Local.Config(dtype=dtype))
    engine.settle(first if first.is_dir() else None, measure=True)
    folder = home / "engine"
    private.tighten(home)
    with private.files(), ExitStack() as stack:
        require_writable(folder)
        template = None
        if chat_template is not None:
            try:
                text = read(str(chat_template), Path())
            except TemplateError as error:
                raise UsageError(f"chat_template: {error}") from None
            template = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "chat.jinja"
            template.write_text(text, encoding="utf-8")
        server = stack.enter_context(
            launch.start(
                named,
                folder,
                folder / "serve.log",
                port=port,
                chat_template=template,
                dtype=engine.dtype,
            )
        )
        return LocalServer(server.base_url, server.api_key, list(named), stack.pop_all())


def named_models(given: Sequence[str], option: str) -> dict[str, str]:
    """Models by the names that they are offered by, from NAME or NAME=DIRECTORY.

    Raises:
        UsageError: an address is named as one.
    """
    offered: dict[str, str] = {}
    for entry in given or tuple(models.BUNDLED):
        name, _, where = entry.partition("=")
        models.check_model(where or name, option)
        offered[name] = where or models.resolve(name)
    return offered
