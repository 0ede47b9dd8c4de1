"""Serves the handler by LitServe with its documented batching.

python lit_app.py UNPACKED_ARCHIVE PORT WORKERS
"""

import sys

import litserve
from handler_model import HandlerModel


class Served(litserve.LitAPI):
    def setup(self, device):
        self.model = HandlerModel(sys.argv[1])

    def decode_request(self, request):
        return request

    def batch(self, bodies):
        return bodies

    def predict(self, bodies):
        return self.model(bodies)

    def unbatch(self, answers):
        return answers

    def encode_response(self, answer):
        return answer


if __name__ == "__main__":
    api = Served(max_batch_size=32, batch_timeout=0.01, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(sys.argv[3]))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False)
