"""The OpenAPI document and the service agree: schemathesis asks what the document allows, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from serving import CLIP, OPEN, FakeEngine

from firsttouch.server import create_app
from firsttouch.settings import Settings

schemathesis = pytest.importorskip("schemathesis")

app = create_app(Settings(**OPEN), engine=FakeEngine())
schema = schemathesis.openapi.from_asgi("/openapi.json", app)
checks = schemathesis.checks


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_keeps_to_its_document(case: Any) -> None:
    _name_a_clip(case.body)
    case.call_and_validate(
        checks=[
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]
    )


def _name_a_clip(body: Any) -> None:
    """Drawn URLs can hardly ever be fetched; half of them become a clip, so that answers are judged too."""
    for name in ("video_url", "url"):
        if isinstance(body, dict) and isinstance(body.get(name), str) and len(body[name]) % 2 == 0:
            body[name] = CLIP + "clip"
