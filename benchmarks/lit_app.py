"""LitServe with its documented batching: python lit_app.py MODEL_DIR PORT THREADS"""

import sys

import litserve
from plain_model import PlainModel


class Sentiment(litserve.LitAPI):
    def setup(self, device):
        self.model = PlainModel(sys.argv[1], threads=int(sys.argv[3]))

    def decode_request(self, request):
        return request["input"][0]

    def predict(self, texts):
        return self.model(texts)

    def unbatch(self, labels):
        return labels

    def encode_response(self, label):
        return [label]


if __name__ == "__main__":
    api = Sentiment(max_batch_size=32, batch_timeout=0.01, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False)
