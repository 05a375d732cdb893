"""Ray Serve: the application of :mod:`q2export.runtime.server.app`, replicated over a Ray cluster.

::

    serve run q2export.runtime.server.ray:app package=/models/qwen2.5-7b max_replicas=4

Each replica is a process that loads the package and has a scheduler of its own. Ray's proxies stream its
answers and tell it of clients that went away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from q2export.contracts.commands import install_command
from q2export.errors import MissingDependencyError, OptionError
from q2export.package.manifest import Manifest
from q2export.package.reader import read_package
from q2export.runtime import load
from q2export.runtime.cpu import processors
from q2export.runtime.scheduler import SchedulerOptions
from q2export.runtime.server.app import create_app
from q2export.runtime.server.options import ServerOptions

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.applications import Starlette


class ReplicaOptions(BaseModel):
    """Arguments of the application, named as the options of ``q2export serve``.

    Attributes:
        package: folder of the engine package, at the same place on every machine of the cluster.
        name: of the model in requests; None is the folder's.
        rows: most texts that a replica generates at once; None is what the package was built for. Replicas
            are added and removed so that each has about so many requests.
        max_queue: requests that may wait in a replica beside those.
        threads: of each replica on the CPU, and the CPUs it takes from Ray; None is every processor of the
            machine on which the application is built. A replica on a GPU takes one GPU.
        min_replicas: that are always there.
        max_replicas: when there is work for them.
        drain_timeout: seconds that running requests have to finish when a replica is removed.
        allow_special_tokens: see :class:`~q2export.runtime.server.options.ServerOptions`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: Path
    name: str | None = None
    rows: int | None = Field(default=None, ge=1)
    max_queue: int = Field(default=256, ge=0)
    threads: int | None = Field(default=None, ge=1)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    drain_timeout: float = Field(default=30.0, ge=0)
    allow_special_tokens: bool = False

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> ReplicaOptions:
        """The options of arguments as ``serve run`` or a Serve config file has them.

        Raises:
            OptionError: naming the argument.
        """
        try:
            options = cls.model_validate(dict(args))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name, *_ = (*problem["loc"], "arguments")
            found = "" if problem["type"] == "missing" else f", found {args.get(str(name))!r}"
            raise OptionError(str(name), f"is wrong: {problem['msg']}{found}") from None
        if options.max_replicas < options.min_replicas:
            found = f"{options.max_replicas} and {options.min_replicas}"
            raise OptionError("max_replicas", f"must be at least min_replicas, found {found}")
        return options

    def deployment(self, manifest: Manifest) -> dict[str, Any]:
        """Options of the deployment: what a replica takes from the machine, and when there are more of them.

        Args:
            manifest: of the package.

        Raises:
            OptionError: the package was built for fewer rows, or takes no threads.
        """
        rows = self.rows or manifest.engine.max_batch
        if rows > manifest.engine.max_batch:
            most = manifest.engine.max_batch
            raise OptionError("rows", f"must be at most {most}, what the engine was built for, found {rows}")
        return {
            "max_ongoing_requests": rows + self.max_queue,
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": rows,
            },
            "graceful_shutdown_timeout_s": self.drain_timeout,
            "ray_actor_options": self._resources(manifest),
        }

    def _resources(self, manifest: Manifest) -> dict[str, int]:
        if manifest.target == "onnxruntime":
            return {"num_cpus": self.threads or processors()}
        if self.threads is not None:
            raise OptionError("threads", f"is for engines on the CPU; {self.package} holds one for a GPU")
        return {"num_cpus": 1, "num_gpus": 1}


def app(args: Mapping[str, Any]) -> Application:
    """An application for ``serve run`` or the ``import_path`` of a Serve config file.

    ``Q2EXPORT_API_KEY`` in the environment of the replicas asks clients for a key.

    Args:
        args: fields of :class:`ReplicaOptions`.

    Raises:
        OptionError: an argument is wrong.
        PackageError: the package is damaged, or for something else.
        MissingDependencyError: Ray is not installed.
    """
    options = ReplicaOptions.of(args)
    manifest = read_package(options.package).manifest
    deployment = options.deployment(manifest)
    try:
        from ray import serve
    except ImportError:
        raise MissingDependencyError(f"this needs Ray Serve: {install_command('ray')}") from None

    def replica() -> Starlette:
        return build(options)

    ingress = serve.deployment(serve.ingress(replica)())
    application: Application = ingress.options(name="q2export", **deployment).bind()
    return application


def build(options: ReplicaOptions) -> Starlette:
    """The application of one replica, which loads the package.

    Raises:
        Q2ExportError: the package cannot be loaded here.
    """
    on_cpu = read_package(options.package, "none").manifest.target == "onnxruntime"
    threads = (options.threads or processors()) if on_cpu else None
    engine = load(options.package, threads=threads)
    return create_app(
        {options.name or options.package.resolve().name: engine},
        ServerOptions(
            api_key=os.environ.get("Q2EXPORT_API_KEY"), allow_special_tokens=options.allow_special_tokens
        ),
        SchedulerOptions(rows=options.rows, queue_limit=options.max_queue),
    )
