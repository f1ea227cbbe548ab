"A server that speaks OpenAI's chat protocol and answers what a function says, for tests of judges."
import json, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def answering(says):
    "The address, up to and with /v1, of a server that answers `says(the last message's text)`."
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args): pass
        def send(self, body):
            data = json.dumps(body).encode()
            self.send_response(200)
            for k, v in {"content-type": "application/json", "content-length": len(data)}.items(): self.send_header(k, str(v))
            self.end_headers(); self.wfile.write(data)
        def do_GET(self): self.send({"object": "list", "data": []})
        def do_POST(self):
            said = says(json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"])
            self.send({"id": "1", "object": "chat.completion", "created": 1, "model": "f", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1"
    finally: server.shutdown(); server.server_close()
