from course import ROOT
from course.exercises import Exercise

_PREFIX = "2026-01-01T10:00:00,000 [INFO ] W-9000-my_model_1.0-stdout MODEL_LOG - "
_LOG = "\n".join(
    _PREFIX + line
    for line in (
        "loading",
        "Traceback (most recent call last):",
        '  File "handler.py", line 3, in <module>',
        "    import torhc",
        "ModuleNotFoundError: No module named 'torhc'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "model_loader.py", line 9, in load',
        "ModuleNotFoundError: No module named 'ts.torch_handler.handler'",
    )
)
_ANSWERS = {
    (400, "The body has no input"): False,
    (400, "Token Authorization failed"): False,  # unchanged, with the same access token, it fails again
    (404, "Model not found: m"): False,
    (413, "Request Entity Too Large"): False,
    (500, "Worker died."): True,
    (503, 'Model "m" has no worker to serve inference request.'): True,
    (503, "Prediction failed"): False,  # the handler raises again for this request
    (503, "number of batch response mismatched"): False,
    (507, "Worker died."): True,
    (507, "Out of resources"): False,
}

_RETURN = "        return answers\n"
_HANDLER = (ROOT / "handler.py").read_text()

EXERCISES = {
    "13.1": Exercise(
        lambda answer: answer(_LOG) == "ModuleNotFoundError: No module named 'torhc'",
        "first_traceback(log) has all of the chain; an empty line ends its first part",
        """from tutorial_lib import first_traceback

def answer(log):
    return first_traceback(log).split("\\n\\n")[0].splitlines()[-1]""",
    ),
    "13.2": Exercise(
        lambda answer: all(bool(answer(*said)) is wanted for said, wanted in _ANSWERS.items()),
        "a worker that died comes back, one that is missing may come; what a handler says it says again",
        """def answer(status, message):
    return "Worker died" in message or "has no worker" in message""",
    ),
    "13.3": Exercise(
        lambda answer: (
            answer(_HANDLER.replace(_RETURN, _RETURN.replace("answers", "answers[0]"))) == _HANDLER
        ),
        "the line is `return answers[0]`; source.replace(old, new) changes it",
        """def answer(source):
    return source.replace("return answers[0]", "return answers")""",
    ),
}
