"""HTTP in, answer out: `create_app(settings)` is the whole service as an ASGI app.

`app` the endpoints; `desk` sharing, queue and deadlines; `service` what lives as long as the app; `schemas` the
bodies; `problems` the errors; `metrics` what /metrics shows.
"""

from firsttouch.server.app import create_app

__all__ = ["create_app"]
