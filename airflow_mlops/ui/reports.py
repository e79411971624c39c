"""Which file a report's address means, and how a browser may treat it: reports are written by other tools, so they are not trusted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# In a sandbox without allow-same-origin a report's scripts run without an identity: no cookie, no request in the reader's name. They reach no
# network either: whatever a report shows is in its own file, and what it was made of goes nowhere.
HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
        "font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}

# Said here and not asked of the machine, whose own table may lack or change an entry. Everything else is a download.
MEDIA_TYPES = {
    "": "text/plain",  # SHA256SUMS
    ".css": "text/css",
    ".gif": "image/gif",
    ".htm": "text/html",
    ".html": "text/html",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".json": "application/json",
    ".jsonl": "text/plain",
    ".log": "text/plain",
    ".md": "text/plain",
    ".otf": "font/otf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".woff2": "font/woff2",
}


RUNS, EVIDENCE = "runs", "evidence"  # folders of the workspace; below each a folder for every DAG
PAGES = (".htm", ".html")


def is_page(area: str, file: Path) -> bool:
    """Return whether a file is made for readers: a run's pages, and the texts of an evidence pack.

    Everything else of a run, its models, specs and records, is for who may edit its DAG.
    """
    return file.suffix.lower() in (MEDIA_TYPES if area == EVIDENCE else PAGES)


def find(workspace: Path, path: str) -> Path | None:
    """Return the regular file that `path`, relative to `workspace`, names below a DAG's folder of ``runs`` or ``evidence``; None for anything else.

    Hidden names, ``..`` and symbolic links below the workspace are never followed, wherever they lead.
    """
    parts = PurePosixPath(path).parts
    if len(parts) < 3 or parts[0] not in (RUNS, EVIDENCE) or any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    try:
        root = workspace.resolve(strict=True)
        file = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):  # no such file, a name too long, or links in a circle
        return None
    return file if file == root.joinpath(*parts) and file.is_file() else None
