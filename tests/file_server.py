"""A server of files in memory, on the loopback interface, with the faults of real servers."""

import collections
import contextlib
import http.server
import re
import threading


class FileServer:
    """Serves files with ranges; each fault that is put before a path is the answer to one request, in their order.

    Attributes:
      url: address of the server.
      files: content by path.
      headers: additional headers by path.
      requests: the method, the path and the first byte of each request.
      faults: by path, the answers to its next requests: ("stop", n) breaks the connection after n bytes,
        ("status", code, headers) has no content, ("hang",) answers nothing until the server ends, ("whole",) ignores
        the range, ("instead", data) sends other data.
    """

    def __init__(self):
        self.files, self.headers, self.requests = {}, {}, []
        self.faults = collections.defaultdict(list)
        self.ending = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        """Answers one request."""
        wanted = request.headers["Range"]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        self.requests.append((request.command, request.path, start))
        kind, *details = self.faults[request.path].pop(0) if self.faults[request.path] else ("none",)
        data = self.files.get(request.path)
        headers, status, end = dict(self.headers.get(request.path, {})), 206 if wanted else 200, None
        if kind == "hang":
            self.ending.wait()
            return
        if kind == "stop":
            end = details[0]
        if kind == "instead":
            data = details[0]
        if kind == "whole":
            start, status = 0, 200
        if kind == "status":
            data, status, headers = b"", details[0], dict(details[1])
        elif data is None:
            data, status = b"", 404
        elif start and start >= len(data):
            data, status, headers["Content-Range"] = b"", 416, f"bytes */{len(data)}"
        elif status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:] if status == 206 else data
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            with contextlib.suppress(ConnectionError):  # the client may have left
                request.wfile.write(body[: None if end is None else max(end - start, 0)])

    def close(self):
        """Ends the server and all answers under way."""
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
