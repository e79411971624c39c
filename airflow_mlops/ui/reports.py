"""Which file a report's address means, and how a browser may treat it: reports are written by other tools, so they are not trusted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# In a sandbox without allow-same-origin a report's scripts run, but as nobody: no cookie, no request in the reader's name.
HEADERS = {
    "Content-Security-Policy": "sandbox allow-scripts allow-popups; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}

# Said here and not asked of the machine, whose own table may lack or change an entry. Everything else is a download.
MEDIA_TYPES = {
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


SHOWN = ("runs", "evidence")  # folders of the workspace


def find(workspace: Path, path: str) -> Path | None:
    """Return the regular file that `path`, relative to `workspace`, names below ``runs`` or ``evidence``; None for anything else.

    Hidden names, ``..`` and symbolic links below the workspace are never followed, wherever they lead.
    """
    parts = PurePosixPath(path).parts
    if not parts or parts[0] not in SHOWN or any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    try:
        root = workspace.resolve(strict=True)
        file = root.joinpath(*parts).resolve(strict=True)
    except (OSError, RuntimeError):  # no such file, a name too long, or links in a circle
        return None
    return file if file == root.joinpath(*parts) and file.is_file() else None
