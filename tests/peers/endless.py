"""A service whose answers never end: `PORT length|chunked`."""

import http.server, sys


class Endless(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        chunked = sys.argv[2] == "chunked"
        self.send_response(200)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "1000000000000")))
        self.end_headers()
        piece = b"x" * 65536
        while True:
            self.wfile.write(b"10000\r\n" + piece + b"\r\n" if chunked else piece)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Endless).serve_forever()
