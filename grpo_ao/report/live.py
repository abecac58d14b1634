"""A run's report over HTTP, made anew while the run goes on."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from grpo_ao.errors import UserError
from grpo_ao.report.headline import headline_of
from grpo_ao.report.page import render_report
from grpo_ao.report.run_record import read_run

# Seconds after which a browser asks again.
_REFRESH = 30
# Of the bootstrap: a page that is looked at meanwhile can have rougher intervals than the last one.
_DRAWS = 100


class ReportServer(HTTPServer):
    """Serves the report of the run in ``folder`` at 127.0.0.1; port 0 takes a free one.

    Raises UserError where there is no run, and where the port is taken.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._made_of: tuple[float, ...] = ()
        self._page = ""
        read_run(folder)
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(
                f"port {port} cannot be listened at ({error.strerror}): give another --port."
            ) from error

    def page(self) -> str:
        """Return the report as the run is now; it is made when a file of the run has changed."""
        files = (*self._folder.glob("*.json*"), *self._folder.glob("*/*/metrics.json"))
        made_of = tuple(sorted(path.stat().st_mtime for path in files))
        if made_of != self._made_of:
            record = read_run(self._folder)
            self._page = render_report(record, headline_of(record, _DRAWS), _DRAWS)
            self._made_of = made_of
        return self._page


class _Handler(BaseHTTPRequestHandler):
    # Seconds without a byte, after which a connection is given up.
    timeout = 60

    def do_GET(self) -> None:
        """Answer ``/`` with the report."""
        server = cast("ReportServer", self.server)
        # A web page may have made another name this machine's, to read what is served here.
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in ("127.0.0.1", "localhost"):
            self.send_error(403)
        elif urlsplit(self.path).path != "/":
            self.send_error(404)
        else:
            body = server.page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Refresh", str(_REFRESH))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep requests off the terminal."""
