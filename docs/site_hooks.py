"""What mkdocs runs on every page: links that leave the site (to files beside the source) become the file's path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    here = Path(page.file.abs_src_path).parent

    def plain(link: re.Match[str]) -> str:
        words, target = link.groups()
        file = (here / target.split("#")[0]).resolve()
        if not file.is_relative_to(ROOT) or file.is_relative_to(ROOT / "docs"):
            return link.group()
        path = file.relative_to(ROOT).as_posix()
        return f"`{path}`" if path in (words, words.strip("`")) else f"{words} (`{path}`)"

    return LINK.sub(plain, markdown)
