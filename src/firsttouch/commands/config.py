"""`firsttouch config`: every setting, its value, where it came from, what is allowed and what it does."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Column, Table

from firsttouch.predict import predict
from firsttouch.settings import PROFILES, Settings, load, shown


def register(app: typer.Typer) -> None:
    @app.command()
    def config(
        profile: Annotated[str | None, typer.Option(help="as if PROFILE were this")] = None,
        profiles: Annotated[bool, typer.Option("--profiles", help="list the profiles instead")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    ) -> None:
        """Print every setting: value, where it came from, what is allowed, what it does."""
        settings = load(profile=profile)
        if profiles:
            typer.echo(profiles_json() if as_json else "", nl=False)
            if not as_json:
                Console().print(profiles_table())
            return
        if as_json:
            typer.echo(config_json(settings))
            return
        Console().print(config_table(settings))
        for note in settings.notes():
            typer.echo(f"{note.kind}: {note}", err=True)


def config_table(settings: Settings) -> Table:
    table = Table(Column("setting", no_wrap=True), "value (from)", "what it does: what is allowed")
    for row in settings.rows():
        value = f"{row.value} {row.unit}".strip() if row.value not in ("auto", "none") else row.value
        style = None if row.origin == "default" else "bold"
        table.add_row(row.name, f"{value}\n({row.origin})", f"{row.description}: {row.allowed}", style=style)
    return table


def config_json(settings: Settings) -> str:
    body = {
        "settings": [asdict(row) for row in settings.rows()],
        "notes": [asdict(note) for note in settings.notes()],
        "prediction": asdict(predict(settings.choice)),
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def profiles_table() -> Table:
    table = Table("profile", "what it is", Column("not as the default", no_wrap=True), "predicted score")
    for profile in PROFILES.values():
        settings = Settings(**profile.values)
        changed = [name for name in profile.values if getattr(settings, name) != getattr(Settings(), name)]
        values = "\n".join(f"{name.upper()}={shown(getattr(settings, name))}" for name in changed)
        predicted = predict(settings.choice)
        table.add_row(profile.name, profile.description, values or "the defaults", f"{predicted.final:.2f}")
    return table


def profiles_json() -> str:
    body = {
        profile.name: {
            "description": profile.description,
            "values": {name.upper(): value for name, value in profile.values.items()},
            "prediction": asdict(predict(Settings(**profile.values).choice)),
        }
        for profile in PROFILES.values()
    }
    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode() + "\n"
