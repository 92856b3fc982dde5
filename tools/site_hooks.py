"""What MkDocs does beside Markdown: pages from the code and from notebooks, links, assets.

Read from the environment: `PTL_REPO_URL`, the repository's page, for links to what lies outside of
`docs/` (without it they become the path alone); `PTL_SITE_URL`, where the site will be;
`PTL_SITE_ASSETS`, where KaTeX and mermaid are taken from instead of the CDN;
`PTL_SITE_EXECUTE=1`, run the notebooks.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import site_notebooks
import site_reference
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
CDN = "https://cdn.jsdelivr.net/npm"
KATEX, MERMAID = "0.19.1", "11.17.2"
SUMS = {
    f"katex@{KATEX}/dist/katex.min.css": "WwGtaC6ywCHxA5cstpj/3+xIZvTez8dq2IcBQaXRkenHZ7FVVq1ZROtURwfbtTlG",
    f"katex@{KATEX}/dist/katex.min.js": "a1WQdjRj162i159OYq041X6I4K8NenkrI09LlPmiHg0YOb7CR+wJOraXwK9abpnE",
    f"katex@{KATEX}/dist/contrib/auto-render.min.js": "bjyGPfbij8/NDKJhSGZNP/khQVgtHUE5exjm4Ydllo42FwIgYsdLO2lXGmRBf5Mz",
    f"mermaid@{MERMAID}/dist/mermaid.min.js": "EOXBFmc3gx5mb+vn0vPvvGqACToJD24hhacX5Yx+8NUUQrHIle/Qi5Bg9o3zKwW2",
}
"""Files of the CDN with their SHA-384, which browsers hold them to."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)((?:\s+\"[^\"]*\")?)\)")
_FENCE = re.compile(r"^( *)(```|~~~)")
_OPTIONAL = "<!-- optional -->"
PAGES = {
    "posttrain_recipes/models/tiny/README.md": "reference/models.md",
    "posttrain_recipes/troubleshooting.md": "troubleshooting.md",
}
"""Files of the repository that have a page here: a link to one holds in both places."""


def on_config(config: Any) -> Any:
    """Set what the environment says, and list the pages of the learning path."""
    config.site_url = os.environ.get("PTL_SITE_URL") or config.site_url
    if repository := _repository():
        config.repo_url = repository
        config.edit_uri = None
    for section in config.nav:
        if "Learn" in section:
            section["Learn"] = [*(section["Learn"] or []), *_learning(Path(config.docs_dir))]
    config.nav = [section for section in config.nav if list(section.values()) != [[]]]
    return config


def _learning(docs: Path) -> list[Any]:
    folder = docs / "learn"
    found = [p for p in sorted(folder.glob("*")) if p.suffix in (".ipynb", ".md")]
    first = [p for p in found if p.stem.lower() in ("readme", "index")]
    rest = [p for p in found if p not in first and p.name != "_.md"]
    return [
        *(f"learn/{p.name}" for p in first),
        *(
            {site_notebooks.title(p): f"learn/{p.stem}.md"}
            if p.suffix == ".ipynb"
            else f"learn/{p.name}"
            for p in rest
        ),
    ]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are written from the code, and the notebooks."""
    for path, text in site_reference.pages().items():
        files.append(File.generated(config, path, content=text))
    for path in sorted((Path(config.docs_dir) / "learn").glob("*.ipynb")):
        text, pictures = site_notebooks.page(path)
        files.append(File.generated(config, f"learn/{path.stem}.md", content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, f"learn/{name}", content=data))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Have links that leave `docs/` go to the repository, and leave out pictures to come."""
    here = posixpath.dirname(page.file.src_uri)
    lines, fence = [], ""
    for line in markdown.split("\n"):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[2]
        elif mark and line.strip() == fence:
            fence = ""
        elif not fence and not line.startswith("    "):
            if _OPTIONAL in line and _missing(line, here, files):
                continue
            line = _LINK.sub(lambda found: _link(found, here, files), line)
        lines.append(line)
    return "\n".join(lines)


def _missing(line: str, here: str, files: Any) -> bool:
    found = _LINK.search(line)
    return found is not None and _uri(found[3], here) not in files.src_uris


def _uri(target: str, here: str) -> str:
    return posixpath.normpath(posixpath.join(here, target.partition("#")[0]))


def _link(found: re.Match[str], here: str, files: Any) -> str:
    picture, text, target, _ = found.groups()
    if re.match(r"[a-z]+:|#|/", target):
        return found[0]
    uri = _uri(target, here)
    if not uri.startswith("../"):
        return _page_of(found, uri, files)
    path = posixpath.normpath(posixpath.join("docs", uri))
    if path in PAGES:
        return found[0].replace(target, posixpath.relpath(PAGES[path], here or "."))
    repository = _repository()
    if not (ROOT / path).exists():
        raise SystemExit(f"{here}: there is no {path}, which a link names")
    if picture:
        return f"`{path}`"
    if repository:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        anchor = target.partition("#")[2]
        return f"[{text}]({repository}/{kind}/main/{path}{'#' + anchor if anchor else ''})"
    bare = text.strip("`")
    if bare in (path, posixpath.basename(path)) or path.endswith(bare):
        return f"`{path}`"
    return f"{text} (`{path}`)"


def _page_of(found: re.Match[str], uri: str, files: Any) -> str:
    """A link to a notebook goes to its page, but for the one that downloads it."""
    if uri.endswith(".ipynb") and "Download" not in found[2]:
        return found[0].replace(".ipynb", ".md")
    return found[0]


def _repository() -> str:
    return os.environ.get("PTL_REPO_URL", "").rstrip("/")


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Load what draws equations and diagrams, on the pages that have some."""
    tags = []
    if 'class="arithmatex"' in output:
        css, *scripts = [name for name in SUMS if name.startswith("katex")]
        tags.append(f'<link rel="stylesheet" {_source("href", css)}>')
        tags += [f"<script defer {_source('src', name)}></script>" for name in scripts]
        tags.append(f"<script>{_RENDER}</script>")
    if 'class="mermaid"' in output:
        tags += [f"<script {_source('src', n)}></script>" for n in SUMS if n.startswith("mermaid")]
    return output.replace("</head>", "\n".join([*tags, "</head>"]), 1)


def _source(attribute: str, name: str) -> str:
    base = os.environ.get("PTL_SITE_ASSETS", "").rstrip("/")
    if base:
        return f'{attribute}="{base}/{name}"'
    return f'{attribute}="{CDN}/{name}" integrity="sha384-{SUMS[name]}" crossorigin="anonymous"'


_RENDER = (
    "document.addEventListener('DOMContentLoaded', () => "
    "document.querySelectorAll('.arithmatex').forEach((element) => "
    "renderMathInElement(element, {throwOnError: false, delimiters: ["
    "{left: '\\\\[', right: '\\\\]', display: true}, "
    "{left: '\\\\(', right: '\\\\)', display: false}]})));"
)
