"""An Ollama Modelfile beside a GGUF file: its template in Go's words, and where a reply stops.

Jinja is not translated as such. What the template writes around each role is read off its own
renders; the Go template is written only where it then gives the same text for every conversation
that is tried. (Ollama: docs/modelfile.md, docs/template.md, template/template.go.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROLES = ("system", "user", "assistant")
Turn = tuple[str, str]
"""A role and what it says."""
Render = Callable[[Sequence[Turn], bool], str]
"""A conversation as text; with True, up to where the assistant begins to write."""


@dataclass(frozen=True)
class Pieces:
    """What a chat template writes, piece by piece."""

    before: Mapping[str, str]
    """Before what a role says."""
    after: Mapping[str, str]
    """After it."""
    without_system: str
    """At the very beginning, where there is no system message: often a default one."""
    begin: str
    """After the last message: where the assistant begins."""

    def render(self, turns: Sequence[Turn]) -> str:
        """A conversation, as Ollama renders `go`."""
        parts = [] if turns and turns[0][0] == "system" else [self.without_system]
        parts += [self.before[role] + said + self.after[role] for role, said in turns]
        return "".join([*parts, self.begin])

    @property
    def go(self) -> str:
        """The same as a template of Go's text/template over Ollama's variables."""
        roles = "".join(
            f'{{{{ {"if" if role == ROLES[0] else "else if"} eq .Role "{role}" }}}}'
            f"{_literal(self.before[role])}{{{{ .Content }}}}{_literal(self.after[role])}"
            for role in ROLES
        )
        first = ""
        if self.without_system:
            first = (
                '{{ if and .Messages (ne (index .Messages 0).Role "system") }}'
                f"{_literal(self.without_system)}{{{{ end }}}}"
            )
        return f"{first}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}" + _literal(
            self.begin
        )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


S, U, A, V = "ζsystemζ", "ζaskζ", "ζsayζ", "ζaskagainζ"
TRIED: Sequence[Sequence[Turn]] = (
    [("user", U)],
    [("system", S), ("user", U)],
    [("user", U), ("assistant", A), ("user", V)],
    [("system", S), ("user", U), ("assistant", A), ("user", V), ("assistant", S), ("user", A)],
    [("user", "Two lines:\n\n  1. {{ .Content }}\n  2. {% if %} <b> & \"so\" 'on'")],
    [("system", "Be brief.\nPlease."), ("user", "naïve 你好?"), ("assistant", "{x}"), ("user", "")],
    [("system", ""), ("user", "a"), ("assistant", "a"), ("user", "a")],
)
"""Conversations on which a template is compared with its translation."""
PADDED: Sequence[Turn] = [
    ("system", " a\n"),
    ("user", "\n b "),
    ("assistant", " c\n"),
    ("user", "d"),
]


def shape_of(render: Render, bos: str = "") -> Pieces | None:
    """What a template writes around each role; None where it is not that simple.

    Args:
        bos: text of the token of a beginning that the server puts there itself; not written.
    """

    def plain(turns: Sequence[Turn], asks: bool = True) -> str:
        return render(turns, asks).removeprefix(bos)

    try:
        first, end = plain([("user", U)]).split(U)
        after_user = plain([("user", U)], False).removeprefix(first + U)
        after_assistant = plain([("user", U), ("assistant", A)], False).split(A)[1]
        before_system, between = plain([("system", S), ("user", U)]).removesuffix(U + end).split(S)
        talk = plain([("user", U), ("assistant", A), ("user", V)])
        before_assistant, to_user = talk.removeprefix(first + U + after_user).split(A)
        before_user = _after(to_user.removesuffix(V + end), after_assistant)
        shape = Pieces(
            {"system": before_system, "user": before_user, "assistant": before_assistant},
            {
                "system": _before(between, before_user),
                "user": after_user,
                "assistant": after_assistant,
            },
            _before(first, before_user),
            _after(end, after_user),
        )
        same = all(shape.render(turns) == plain(turns) for turns in TRIED)
    except Exception:  # a template refuses a conversation, or shows it in another way
        return None
    return shape if same else None


def _after(text: str, part: str) -> str:
    if not text.startswith(part):
        raise ValueError(part)
    return text[len(part) :]


def _before(text: str, part: str) -> str:
    if not text.endswith(part):
        raise ValueError(part)
    return text[: len(text) - len(part)]


def _fits(text: str) -> bool:
    """Whether a Modelfile can quote a text: of what is not printable its parser keeps white space
    alone."""
    plain = text.replace("\n", "").replace("\t", "")
    return plain.isprintable() and '"""' not in text and not text.endswith('"')


def write(
    gguf: str,
    render: Render | None,
    stops: Sequence[str],
    *,
    bos: str = "",
    notes: Sequence[str] = (),
    shows_more: bool = False,
) -> tuple[str, list[str]]:
    """The text of a Modelfile, and what it does otherwise than the model's own template.

    Args:
        gguf: name of the file beside it.
        render: the model's own template; None where it has none.
        stops: texts that end a reply.
        bos: the text of the token that the server begins each text with; empty for none.
        notes: more to say in it.
        shows_more: whether the template shows tools or reasoning, too.
    """
    told = list(notes)
    lines = []
    shape = shape_of(render, bos) if render else None
    go = None if shape is None else shape.go
    if render is None:
        told.append(
            "the model has no chat template: Ollama sends it what the user says as it is; write a "
            "TEMPLATE here if it was trained with one"
        )
    elif go is None or not _fits(go):
        told.append(
            "the model's chat template has no sure translation, and none is written: Ollama takes "
            "the nearest that it knows, or shows messages as they are. Write a TEMPLATE here, or "
            "serve model.gguf with llama-server --jinja, which reads the model's own"
        )
    else:
        lines.append(f'TEMPLATE """{go}"""')
        assert render is not None
        if shape is not None and shape.render(PADDED) != render(PADDED, True).removeprefix(bos):
            told.append(
                "the model's own template takes away white space around what is said, and this one "
                "does not"
            )
        if shows_more:
            told.append(
                "the model's own template shows tools or reasoning as well, and this one does not"
            )
    for stop in stops:
        quoted = f'"""{stop}"""' if '"' in stop or "\n" in stop else f'"{stop}"'
        if not _fits(stop):
            told.append(f"a reply also stops at {stop!r}, which a Modelfile cannot say")
        else:
            lines.append(f"PARAMETER stop {quoted}")
    comments = [f"# Note: {' '.join(note.split())}" for note in told]
    head = ["# ollama create NAME -f Modelfile", *comments, f"FROM ./{gguf}"]
    return "\n".join([*head, *lines]) + "\n", told
