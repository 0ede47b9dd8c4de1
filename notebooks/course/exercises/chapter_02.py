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
        lambda answer: answer == "serializedFile",
        "look at manifest['model'] once more: which value is the name of the weights?",
        'answer = "serializedFile"',
    ),
}
