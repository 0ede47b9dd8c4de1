from course.exercises import Exercise

_WORKERS = {"workers": [{"status": "READY"}, {"status": "WORKER_STARTED"}, {"status": "READY"}]}

EXERCISES = {
    "05.1": Exercise(
        lambda answer: answer(_WORKERS) == 2,
        'count the workers whose "status" is "READY"',
        """def answer(description):
    return sum(worker["status"] == "READY" for worker in description["workers"])""",
    ),
    "05.2": Exercise(
        lambda answer: answer("http://h:1", "m", "2.0") == "http://h:1/predictions/m/2.0",
        "the version comes after the name, as one more part of the path",
        """def answer(address, model, version):
    return f"{address}/predictions/{model}/{version}\"""",
    ),
}
