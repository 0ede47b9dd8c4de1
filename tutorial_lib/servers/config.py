"""Checks and writes config.properties, and tells what its values mean for a server and its clients.

TorchServe ignores a key that it does not know, and reads a switch with an odd value as false. So each key and
value is checked here, before anything starts.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tutorial_lib.servers.base import ADDRESSES

LOOPBACK = "127.0.0.1"

# The keys of TorchServe 0.12, by the kind of their values.
_BY_KIND = {
    "switch": """
        async_logging cpu_launcher_enable debug decode_input_request disable_system_metrics
        disable_token_authorization enable_grpc_ssl enable_metrics_api enable_model_api
        install_py_dep_per_model ipex_enable ipex_gpu_enable model_metrics_auto_detect prefer_direct_buffer
        use_native_io""",
    "number": """
        default_response_timeout default_startup_timeout default_workers_per_model grpc_inference_port
        grpc_management_port initial_distribution_port initial_worker_port io_ratio job_queue_size
        limit_max_image_pixels max_request_size max_response_size metric_time_interval netty_client_threads
        number_of_gpu number_of_netty_threads unregister_model_timeout""",
    "file": "certificate_file cpp_log_config keystore metrics_config private_key_file",
    "text": """
        allowed_urls blacklist_env_vars cors_allowed_headers cors_allowed_methods cors_allowed_origin
        cpu_launcher_args default_service_handler grpc_inference_address
        grpc_inference_max_connection_age_grace_ms grpc_inference_max_connection_age_ms
        grpc_management_address grpc_management_max_connection_age_grace_ms
        grpc_management_max_connection_age_ms inference_address keystore_pass keystore_type
        management_address metrics_address metrics_mode models plugins_path service_envelope
        system_metrics_cmd token_expiration_min ts_header_key_sequence_end ts_header_key_sequence_id
        ts_header_key_sequence_start ts_open_inference_protocol vmargs workflow_store""",
}
_KIND = {key: kind for kind, keys in _BY_KIND.items() for key in keys.split()}

# Keys that are set elsewhere: by the server's command line, or by this library.
_INSTEAD = {
    "load_models": "Give models=, as {'my_model': 'model_store/my_model.mar'}.",
    "model_snapshot": "A server of this library starts without snapshots. Give models=.",
    "model_store": "Give model_store=, or models=, whose folder it is.",
    "python": "The workers run in the Python that runs this. Start the server from another environment.",
    "enable_envvars_config": "Variables TS_… would then win over what this server and its clients use. Give "
    "the keys themselves in config=.",
    "use_env_allowed_urls": "Give allowed_urls.",
}
# TorchServe's launcher reads these two itself, and does not decode escapes.
_READ_BY_THE_LAUNCHER = {
    "vmargs": "give such JVM options in the variable JAVA_TOOL_OPTIONS",
    "plugins_path": "move the plugins to such a folder",
}
_PORT_KEYS = {
    "grpc_inference": "grpc_inference_port",
    "grpc_management": "grpc_management_port",
    "worker": "initial_worker_port",
}
PORT_NAMES = (*ADDRESSES, *_PORT_KEYS)

# A limit → its key in config.properties, and the value if nothing sets it.
_LIMITS = {
    "minWorkers": ("default_workers_per_model", 1),
    "startupTimeout": ("default_startup_timeout", 120),
    "responseTimeout": ("default_response_timeout", 120),
    "jobQueueSize": ("job_queue_size", 100),
    "max_request_size": ("max_request_size", 6_553_500),
    "max_response_size": ("max_response_size", 6_553_500),
}

# A config file in the archive sets these to TorchServe's defaults if it does not mention them.
_SET_BY_ANY_CONFIG_FILE = ("minWorkers", "startupTimeout", "responseTimeout")

_ADDRESS = re.compile(
    r"(https?)://([^:/\s]+):(\d+)", re.IGNORECASE | re.ASCII
)  # TorchServe accepts no IPv6 address
_METRICS_MODES = ("log", "prometheus", "legacy")
_VARIABLE = re.compile(r"\$\$[^$]+\$\$")
_MAXIMUM = 2**31 - 1  # a Java int
_SECRET = re.compile(r"(?is)(?<=pass|word)\b.*|(?<=//)\S*(?=@)")


class Address(NamedTuple):
    """An address on which the server listens.

    >>> Address("http", "0.0.0.0", 8080).host
    '0.0.0.0'
    """

    scheme: str
    host: str
    port: int


@dataclass(frozen=True)
class ServerConfig:
    """Checked keys for config.properties, and what they decide.

    Attributes:
        settings: key → the text that the server reads.

    >>> config = ServerConfig.of({"disable_token_authorization": True, "inference_address": "http://0.0.0.0:80"})
    >>> config.is_on("disable_token_authorization", False), config.port("inference"), config.host("inference")
    (True, 80, '0.0.0.0')
    """

    settings: Mapping[str, str] = field(repr=False)  # it may hold keystore_pass

    @classmethod
    def of(cls, config: Mapping[str, object] | None) -> ServerConfig:
        """Checks the keys and values that a caller gave.

        Args:
            config: key → value: a text, a number, True or False, or a Path; for the key models, also a dict.
                A relative Path is made absolute; so is a text, if the key needs a file.

        Raises:
            TypeError: `config` is no dict, or a value has a type that can't be written as text.
            ValueError: TorchServe does not know a key, or can't use a value. The message says what to give.
        """
        if not isinstance(config, Mapping | None):
            shown = _SECRET.sub("…", repr(config))
            raise TypeError(f"config is {shown:.100}. Give a dict, as {{'job_queue_size': 1000}}.")
        given = dict(config or {})
        for key in given:
            _check_key(key, any_key="plugins_path" in given)  # a plugin may read keys of its own
        checked = cls({key: _checked_value(key, value) for key, value in given.items()})
        checked._check_https()
        for name in ADDRESSES:
            checked.address(name)
        return checked

    def is_on(self, key: str, default: bool) -> bool:
        """Returns whether a switch is on; `default` if it is not set."""
        return self.settings[key].lower() == "true" if key in self.settings else default

    def address(self, name: str) -> Address | None:
        """Returns the address of that name, None if the config gives none."""
        key = f"{name}_address"
        if key not in self.settings:
            return None
        found = _ADDRESS.fullmatch(text := self.settings[key])
        if found is None or not 0 < int(found[3]) < 65536:
            raise ValueError(
                f"config has {_quote(key, text)}. Give it as 'http://127.0.0.1:8080': http or https, a host "
                "name or an IPv4 address, and a port. For a port alone, ports= is enough."
            )
        if found[1].lower() == "https" and not self.has_certificate:
            raise ValueError(
                f"config has {_quote(key, text)} and no certificate. Give certificate_file, which the "
                "clients trust, and private_key_file too."
            )
        return Address(found[1].lower(), found[2], int(found[3]))

    def limit(self, name: str, model: str, archive: Mapping[str, object], default: int | None = None) -> int:
        """Returns the value that TorchServe uses for a setting with a number.

        Args:
            name: a setting of a model, as "responseTimeout", or a key, as "max_response_size".
            model: the model's name.
            archive: the settings in its archive (`read_settings`), which win.
            default: the value if nothing sets it; None for TorchServe's.

        >>> ServerConfig.of({"default_response_timeout": 7}).limit("responseTimeout", "m", {})
        7
        """
        key, of_torchserve = _LIMITS[name]
        if archive and name not in archive and name in _SET_BY_ANY_CONFIG_FILE:
            return of_torchserve
        versions: dict[str, dict[str, object]] = json.loads(self.settings.get("models", "{}")).get(model, {})
        in_config = [settings.get(name) for settings in versions.values()]
        for value in (archive.get(name), *in_config, self.settings.get(key), default):
            if isinstance(value, int | str) and str(value).isdecimal():
                return int(value)
        return of_torchserve

    def host(self, name: str) -> str:
        """Returns the host on which the port of that name is opened."""
        address = self.address(name)
        return address.host if address else self.settings.get(f"{name}_address", LOOPBACK)

    def port(self, name: str) -> int | None:
        """Returns the port of that name, None if the config gives none."""
        if name in _PORT_KEYS:
            text = self.settings.get(_PORT_KEYS[name])
            return None if text is None else int(text)
        address = self.address(name)
        return address.port if address else None

    def url(self, name: str, port: int) -> str:
        """Returns the URL at which clients on this machine find the address of that name."""
        address = self.address(name)
        scheme = address.scheme if address else "https" if self.has_certificate else "http"
        host = LOOPBACK if self.host(name) == "0.0.0.0" else self.host(name)
        return f"{scheme}://{host}:{port}"

    @property
    def has_certificate(self) -> bool:
        """Whether the addresses are https."""
        return "certificate_file" in self.settings

    def _check_https(self) -> None:
        keys = self.settings.keys() & {"certificate_file", "private_key_file", "keystore"}
        if keys and ("certificate_file" not in keys or len(keys) < 2):
            raise ValueError(
                f"config has {' and '.join(sorted(keys))} alone. For https give certificate_file, which the "
                "clients trust, and private_key_file (or a keystore with both)."
            )


def to_properties(settings: Mapping[str, object]) -> str:
    r"""Returns the text of a config.properties that Java reads back as these settings.

    Java reads such a file as Latin-1, with \uXXXX for all other letters; leading blanks, line ends and
    backslashes have a meaning. TorchServe's launcher reads the file too, in the locale's encoding. Both read
    ASCII in the same way.

    >>> to_properties({"metrics_config": "/home/jürgen/metrics.yaml", "async_logging": True})
    'metrics_config=/home/j\\u00fcrgen/metrics.yaml\nasync_logging=true\n'
    """
    return "".join(f"{key}={_escape(_text(key, value))}\n" for key, value in settings.items())


def _escape(text: str) -> str:
    def units(match: re.Match[str]) -> str:  # UTF-16 units: two for an emoji
        code = match[0].encode("utf-16-be", "surrogatepass").hex(":", 2)
        return "".join(f"\\u{unit}" for unit in code.split(":"))

    return re.sub(r"^ |[^ -\[\]-~]", units, text)


def _text(key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if key == "models" and isinstance(value, Mapping):
        return json.dumps(value)
    raise TypeError(f"config has {_quote(key, value)}. Give a text, a number, True or False, or a Path.")


def _quote(key: str, value: object) -> str:
    """Returns key and value for a message, without a password."""
    return f"{_SECRET.sub('…', f'{key}={value!r}'):.150}"


def _check_key(key: object, any_key: bool) -> None:
    if isinstance(key, str) and key in _INSTEAD:
        raise ValueError(f"config has {key}, which this server can't use. {_INSTEAD[key]}")
    if not isinstance(key, str) or not re.fullmatch(r"\w[\w.-]*", key, re.ASCII):
        raise ValueError(f"config has the key {key!r}. Give the name of a key, as 'job_queue_size'.")
    if key not in _KIND and not any_key:
        near = difflib.get_close_matches(key, _KIND, n=1)
        advice = f"Did you mean {near[0]}?" if near else "Leave it out."
        raise ValueError(
            f"config has {key}, and TorchServe's config.properties has no such key. {advice} (Settings of "
            "one model, as batchSize, go into its archive's config_file.)"
        )


def _checked_value(key: str, value: object) -> str:
    text = _text(key, value)
    if _VARIABLE.search(text):
        raise ValueError(
            f"config has {_quote(key, text)}, and TorchServe replaces $$…$$ by an environment variable. Give "
            "the value itself, as os.environ['NAME']."
        )
    if _KIND.get(key) == "switch" and text.lower() not in ("true", "false"):
        raise ValueError(f"config has {key}={value!r}. Give True or False.")
    if _KIND.get(key) == "number":
        _check_whole_number(key, value, text)
    if key == "metrics_mode" and text not in _METRICS_MODES:
        raise ValueError(f"config has {key}={value!r}. Give one of {', '.join(_METRICS_MODES)}.")
    if key == "models":
        _check_models(text)
    if key in _READ_BY_THE_LAUNCHER and not re.fullmatch(r"[ -\[\]-~]*", text):
        raise ValueError(
            f"config has {_quote(key, text)}, and TorchServe's launcher reads that key without escapes. Use "
            f"letters of ASCII and no backslash: {_READ_BY_THE_LAUNCHER[key]}."
        )
    if key == "token_expiration_min" and not _is_positive(text):
        raise ValueError(f"config has {key}={value!r}. Give a number of minutes above 0.")
    if key == "plugins_path":
        folder = _existing(key, text.removesuffix("*"))
        return f"{folder}/*" if text.endswith("*") else folder
    if _KIND.get(key) == "file" or key == "workflow_store":
        return _existing(key, text)
    return text


def _check_whole_number(key: str, value: object, text: str) -> None:
    maximum = 65535 if key in _PORT_KEYS.values() else _MAXIMUM
    minimum = 1 if key in _PORT_KEYS.values() else -_MAXIMUM
    if (
        isinstance(value, bool | float)
        or not re.fullmatch(r"-?\d+", text, re.ASCII)
        or not (minimum <= int(text) <= maximum)
    ):
        raise ValueError(f"config has {key}={value!r}. Give a whole number from {minimum} to {maximum}.")


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _check_models(text: str) -> None:
    try:
        right = isinstance(json.loads(text), dict)
    except ValueError:
        right = False
    if not right:
        raise ValueError(
            f"config has models={text!r:.100}, which is not JSON. Give a dict of model → version → settings, "
            "as {'my_model': {'1.0': {'minWorkers': 2}}}."
        )


def _existing(key: str, text: str) -> str:
    path = Path(text).absolute()
    kind = "file" if _KIND.get(key) == "file" else "folder"
    if not (path.is_dir() if kind == "folder" else path.is_file()):
        raise ValueError(f"config has {key}={text!r}, and there is no such {kind}. Check the path.")
    return str(path)
