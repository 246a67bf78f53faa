"""What the site needs beyond docs/: pages from elsewhere in the repository, with links that work on GitHub and on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/results/*/*.md"))
PAGES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", *RESULTS)
"""From outside docs/, each under its path in the repository."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for path in PAGES:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that are relative to the repository into links of the site.

    A link to a file that is no page becomes its text: the site has no copy of it. One to nothing stays, for the strict build to refuse.
    """
    source = page.file.src_uri
    folder = posixpath.dirname(source if source in PAGES else f"docs/{source}")

    def moved(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        there = path.removeprefix("docs/")
        if files.get_file_from_path(there) is not None:
            return f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(source) or '.')}{anchor})"
        return text if (ROOT / path).exists() else match[0]

    return _LINK.sub(moved, markdown)
