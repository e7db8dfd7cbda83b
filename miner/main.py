"""The service as an ASGI app, for `uvicorn main:app --host 0.0.0.0 --port 7999` started in this folder."""

import sys

from firsttouch.errors import SettingsError
from firsttouch.server import create_app

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"{error.name}: {error}\nhint: {error.hint}")
