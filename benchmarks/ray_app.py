"""Serves the archive on Ray Serve, by `build_app`: python ray_app.py ARCHIVE PORT REPLICAS"""

import signal
import sys
import tempfile

from ray import init, serve

from tutorial_lib.ray_app import build_app

if __name__ == "__main__":
    archive, port, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        init(num_cpus=replicas, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(archive, replicas=replicas))
        signal.sigwait([signal.SIGTERM, signal.SIGINT])
        serve.shutdown()
