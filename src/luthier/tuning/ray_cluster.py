"""Connecting to a Ray cluster, what it has room for, and getting workers there."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, unknown
from luthier.tuning.ledger import StudyError
from luthier.tuning.workers import Workers

_REACH_S = 5.0
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}


def ray_workers(folder: Path, count: int | None, on: str, resources: Mapping[str, Any] | None, **more: Any) -> Workers:
    """Connect to Ray and begin actors there.

    Args:
        folder: see `on_ray.RayWorkers`.
        count: actors; as many as the cluster holds when None.
        on: see `ray_cluster.connect`.
        resources: see `ray_cluster.checked`.
        more: see `Workers`.

    Raises:
        LuthierError: arguments do not fit, or Ray is missing.
        StudyError: the cluster cannot be reached, or can hold no worker.
    """
    options = checked(resources)
    ours = connect(on)
    try:
        from luthier.tuning.on_ray import RayWorkers

        return RayWorkers(folder, count or n_places(options), options, disconnect=ours, **more)
    except BaseException:
        if ours:
            import ray

            ray.shutdown()
        raise


def connect(on: str) -> bool:
    """Connect this process to Ray, unless it is connected; returns whether that was done here.

    Args:
        on: "ray": the cluster of `RAY_ADDRESS`, or that runs on this machine, else a new one of this machine alone;
            "ray://host:10001": the cluster with that head.

    Raises:
        LuthierError: another text, or Ray is not installed.
        StudyError: the head cannot be reached.
    """
    if on != "ray" and not on.startswith("ray://"):
        raise LuthierError(f"on must be 'ray' or 'ray://host:10001', got {on!r}")
    try:
        import ray
    except ImportError:
        raise LuthierError("workers on Ray need Ray: pip install luthier[ray]") from None
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS") if on == "ray" else on
    if address and address not in ("auto", "local"):
        check_reachable(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not (address and "://" in address):
        quiet["include_dashboard"] = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of slow connections, which are tried again
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise StudyError(
            f"Ray does not answer at {address or 'this machine'}: {text}. A head that asks for a token "
            "(see `ray get-auth-token` there) needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN set here"
        ) from error
    return True


def check_reachable(address: str) -> None:
    """Whether something listens at an address: Ray itself would try for long.

    Raises:
        LuthierError: the address has no port.
        StudyError: nothing listens.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        raise LuthierError(f"a Ray address is host:port, for instance ray://head:10001, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise StudyError(
            f"no Ray cluster can be reached at {address} ({error}): start its head with `ray start --head`, "
            "and see that this machine may connect to the port"
        ) from None


def checked(resources: Mapping[str, Any] | None) -> dict[str, Any]:
    """What each worker needs, as options of an actor; one CPU unless told otherwise.

    >>> checked({"num_gpus": 1})
    {'num_cpus': 1, 'num_gpus': 1}

    Raises:
        LuthierError: an unknown resource, or an amount that is none.
    """
    options = {"num_cpus": 1, **(resources or {})}
    for name, value in options.items():
        if name not in (*_NAMES, "resources"):
            raise unknown("resource", name, (*_NAMES, "resources"))
        for amount in value.values() if name == "resources" else [value]:
            if isinstance(amount, bool) or not isinstance(amount, (int, float)) or amount < 0:
                raise LuthierError(f"resources: {name} must be an amount of at least 0, got {amount!r}")
    return options


def needs_of(options: Mapping[str, Any]) -> dict[str, float]:
    """What an actor with these options takes, by the names that Ray's nodes use.

    >>> needs_of({"num_cpus": 1, "num_gpus": 0, "resources": {"fast_disk": 1}})
    {'CPU': 1, 'fast_disk': 1}
    """
    needs = {_NAMES[name]: amount for name, amount in options.items() if name in _NAMES}
    return {name: amount for name, amount in {**needs, **options.get("resources", {})}.items() if amount > 0}


def n_places(options: Mapping[str, Any]) -> int:
    """How many such workers the cluster's nodes hold at a time.

    Raises:
        StudyError: none.
    """
    import ray

    needs = needs_of(options)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = sum(_places(node, needs) for node in nodes)
    if not places:
        raise StudyError(
            f"no node of the Ray cluster can hold a worker: it needs {_named(needs)}, the {len(nodes)} nodes have "
            f"{_named(ray.cluster_resources(), like=needs)} in all. Change resources, or add nodes; where nodes are "
            "added on demand, say how many workers"
        )
    return places


def _places(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    return min(
        (int(node.get(name, 0) / amount + 1e-9) for name, amount in needs.items()), default=int(node.get("CPU", 1))
    )


def plea(waited_s: float, needs: Mapping[str, float], count: int) -> str:
    """Why there is not one worker, and what to do."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    return (
        f"not one Ray worker found a place within {waited_s:g} s: each of {count} needs {_named(needs)}, the cluster "
        f"has {_named(has, like=needs)}, of which {_named(free, like=needs)} is free. Free or add some, or ask for less"
    )


def _named(amounts: Mapping[str, float], like: Mapping[str, float] | None = None) -> str:
    return ", ".join(f"{amounts.get(name, 0):g} {name}" for name in (like or amounts)) or "nothing"
