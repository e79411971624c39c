"""How the ledger's rows become pages: one Jinja2 environment that escapes everything."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from airflow_mlops.names import text_of

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}

STEPS = {"plan-rollout": "begin rollout", "switch": "serve", "promote": "make champion", "rollback": "roll back", "evidence": "write evidence"}

# Signs that every text font has; emoji would be empty boxes on many a Linux desktop.
SIGNS = {":scales:": "⚖", ":raising_hand:": "☝", ":rocket:": "★", ":rewind:": "«", ":x:": "✘"}


def render(template: str, **values: object) -> str:
    """Return the page `template` filled with `values`, every one of them escaped."""
    return _ENVIRONMENT.get_template(template).render(**values)


def mrkdwn(text: str) -> Markup:
    """Return a message written for Slack as HTML: ``*bold*``, ```code``` and a sign for each emoji that this package uses."""
    html = str(escape(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")))  # Slack's own escapes are no HTML yet
    html = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html)
    html = re.sub(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])", r"<b>\1</b>", html)
    return Markup(re.sub(r":[a-z_]+:", lambda match: SIGNS.get(match[0], match[0]), html))  # escaped at the start


def stamp(at: datetime) -> Markup:
    """Return the time `at` (UTC) to the minute, with the exact one for machines."""
    return Markup('<time datetime="{}">{:%Y-%m-%d %H:%M}</time>').format(at.isoformat(timespec="seconds"), at)


def run_url(dag_id: str, run_id: str) -> str:
    """Return Airflow's address of a run, relative to the overview so that it survives a path prefix of the deployment."""
    return f"../dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}"


def evidence_url(path: str) -> str:
    """Return the address of the page of the evidence pack at `path`, relative to the overview."""
    folder, *rest = PurePosixPath(path).parts[-4:]
    return f"reports/evidence/{'/'.join(quote(part, safe='') for part in (text_of(folder) or folder, *rest))}/index.html"


def short_digest(digest: str) -> str:
    """Return the first 12 hex digits, enough to tell versions apart by eye."""
    return digest.removeprefix("sha256:")[:12]


_ENVIRONMENT = Environment(loader=PackageLoader("airflow_mlops.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters.update(mrkdwn=mrkdwn, stamp=stamp, short_digest=short_digest)
_ENVIRONMENT.globals.update(run_url=run_url, evidence_url=evidence_url, steps=STEPS)
