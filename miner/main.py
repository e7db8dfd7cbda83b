"""The service as an ASGI app, for `uvicorn main:app --host 0.0.0.0 --port 7999` started in this folder."""

from firsttouch.server import create_app

app = create_app()
