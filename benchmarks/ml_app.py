"""Serves the handler by MLServer with its documented adaptive batching: `mlserver start FOLDER`.

contenders.py writes FOLDER.
"""

from handler_model import HandlerModel
from mlserver import MLModel
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):
    async def load(self) -> bool:
        self.model = HandlerModel(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        texts = StringCodec.decode_input(payload.inputs[0])
        answers = self.model([{"input": [text]} for text in texts])
        output = StringCodec.encode_output("labels", [answer[0] for answer in answers])
        return InferenceResponse(model_name=self.name, outputs=[output])
