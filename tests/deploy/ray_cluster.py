"""A program: a Ray cluster of a head and two more nodes on this machine, with the application on them.

    python ray_cluster.py '{"port": …, "args": {…}}'

It reads commands from standard input, one a line, and prints "done" after each: {"deploy": ARGS} deploys again, and
{"kill": true} kills a node that has a replica, with all its processes. It is a program of its own because Ray reads
its variables when it is imported, and so that a test can end everything that it has started.
"""

from __future__ import annotations

import json
import socket
import sys

import psutil
import ray
from ray import serve
from ray.cluster_utils import Cluster

from service import ray_serve

STORE_BYTES = 80_000_000  # Ray's objects; the service has none, and this is the least that Ray takes
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def main() -> None:
    options = json.loads(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False} | node())
    others = [cluster.add_node(**node()) for _ in range(2)]
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": options["port"]})
    deploy(options["args"])
    print("done", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "deploy" in command:
            deploy(command["deploy"])
        else:
            kill(others)
        print("done", flush=True)


def node() -> dict[str, int]:
    """The arguments of a node. If an agent chose its port itself, Ray would wait for it for only 15 s."""
    ports = {name: free_port() for name in AGENT_PORTS}
    return {"num_cpus": 1, "object_store_memory": STORE_BYTES} | ports


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def deploy(args: dict[str, object]) -> None:
    serve.run(ray_serve.app(args), name="detector")


def kill(nodes: list[ray._private.node.Node]) -> None:
    for node in nodes:
        (raylet,) = (each.process.pid for each in node.all_processes["raylet"])
        processes = [psutil.Process(raylet), *psutil.Process(raylet).children(recursive=True)]
        if any("ServeReplica" in " ".join(each.cmdline()) for each in processes):
            for each in processes:
                each.kill()
            return
    raise RuntimeError("no node beside the head has a replica")


main()
