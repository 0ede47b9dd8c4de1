from course.exercises import Exercise

EXERCISES = {
    "15.1": Exercise(
        lambda answer: (
            [s for s in (0, 200, 400, 404, 413, 500, 502, 503, 504) if answer(s) is True]
            == [0, 500, 502, 503, 504]
        ),
        "a wrong request stays wrong; a failure of the server, or no answer, may pass",
        """def answer(status):
    return status in (0, 500, 502, 503, 504)""",
    ),
    "15.2": Exercise(
        lambda answer: (answer(1000, 50, 16), answer(30, 50, 16), answer(96_000, 10, 16)) == (4, 2, 1001),
        "replicas = ceil(rate / (0.6 * per_replica)); hosts = ceil(replicas / cores), and one more",
        """from math import ceil

def answer(rate, per_replica, cores):
    replicas = ceil(round(rate / (0.6 * per_replica), 6))
    return ceil(replicas / cores) + 1""",
    ),
    "15.3": Exercise(
        lambda answer: (
            answer(["Positive", "Neutral"], "1.0") == {"labels": ["Positive", "Neutral"], "version": "1.0"}
        ),
        "a dict with two keys; LitServe turns it into JSON",
        """def answer(labels, version):
    return {"labels": labels, "version": version}""",
    ),
}
