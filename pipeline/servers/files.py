"""Shows artifacts to a browser on this machine and changes nothing: ``python -m pipeline.servers.files ROOT PORT``.

Only the folders of stages are shown: databases, logs and names that begin with a dot are not.
"""

import functools
import http
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from stages.storage.workspace import FOLDERS

HOST = "127.0.0.1"


class Handler(SimpleHTTPRequestHandler):
    """Answers GET and HEAD below the folders of stages; everything else does not exist.

    Args:
        directory: the root.
    """

    def __init__(self, *arguments: Any, directory: str) -> None:
        self.root = Path(directory).resolve()
        super().__init__(*arguments, directory=directory)

    def send_head(self) -> Any:
        """The file or the list of a folder, if it may be seen."""
        if not self._is_for_this_machine() or not self._may_be_seen():
            self.send_error(http.HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def end_headers(self) -> None:
        """Add that a browser takes files for what they are called."""
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def _is_for_this_machine(self) -> bool:
        """Whether the browser was told this machine: a page from elsewhere could have made its own name mean this address."""
        name, _, _ = (self.headers.get("Host") or "").partition(":")
        return name in (HOST, "localhost")

    def _may_be_seen(self) -> bool:
        path = Path(self.translate_path(self.path)).resolve()
        if not path.is_relative_to(self.root):
            return False
        parts = path.relative_to(self.root).parts
        return bool(parts) and parts[0] in FOLDERS.values() and not any(part.startswith(".") for part in parts)


def serve(root: Path, port: int) -> None:
    """Answer until the process is ended."""
    with ThreadingHTTPServer((HOST, port), functools.partial(Handler, directory=str(root))) as server:
        server.serve_forever()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
