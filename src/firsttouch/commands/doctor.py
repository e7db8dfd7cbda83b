"""`firsttouch doctor`: what is wrong with these settings, this machine and this source, and what to change."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from firsttouch.doctor import Finding, examine
from firsttouch.settings import load

STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def register(app: typer.Typer) -> None:
    @app.command()
    def doctor(
        source: Annotated[str | None, typer.Argument(help="a URL or file, as the service gets it")] = None,
        profile: Annotated[str | None, typer.Option(help="as if PROFILE were this")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    ) -> None:
        """Look for what is wrong; exit code 0 only when nothing is."""
        findings = examine(source, load(profile=profile))
        wrong = sum(finding.state == "wrong" for finding in findings)
        if as_json:
            body = {"wrong": wrong, "findings": [asdict(finding) for finding in findings]}
            typer.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
        else:
            Console().print(table_of(findings))
            typer.echo(f"{wrong} wrong" if wrong else "nothing is wrong")
        raise typer.Exit(1 if wrong else 0)


def table_of(findings: list[Finding]) -> Table:
    table = Table("", "what", "seen", Column("change", overflow="fold"), show_lines=True)
    for finding in findings:
        state = f"[{STYLES[finding.state]}]{finding.state}[/]"
        table.add_row(state, finding.name, escape(finding.evidence), escape(finding.change))
    return table
