from course.exercises import Exercise

_LOG = "W-9000 Properties: {'model_dir': 'models/abc', 'gpu_id': None}"

EXERCISES = {
    "02.1": Exercise(
        lambda answer: answer(_LOG) == "models/abc",
        "what follows 'Properties: ' is a Python dict: ast.literal_eval reads it",
        """import ast

def answer(line):
    return ast.literal_eval(line.split("Properties: ")[1])["model_dir"]""",
    ),
    "02.2": Exercise(
        lambda answer: (
            answer([{"body": {}}, {"body": "{}"}, {"body": bytearray()}]) == ["dict", "str", "bytearray"]
        ),
        'a request is a dict, and its body is request["body"]; type(…).__name__ is the name of its type',
        """def answer(requests):
    return [type(request["body"]).__name__ for request in requests]""",
    ),
}
