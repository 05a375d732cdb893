"""Plugin creators: one per op of the specification, in the namespace of this project."""

from __future__ import annotations

from functools import cache
from types import ModuleType, new_class
from typing import Any

from q2export.contracts import opspec
from q2export.errors import ExportError
from q2export.plugins.tensorrt.fields import attributes_from_fields, declared
from q2export.plugins.tensorrt.plugin import GenericPlugin, plugin_class
from q2export.plugins.tensorrt.refusals import recorded

_registered: list[GenericCreator] = []
"""TensorRT keeps no reference of its own."""


class GenericCreator:
    """The methods of ``IPluginCreatorV3One`` for one op.

    Args:
        trt: the TensorRT module.
        spec: the op.
    """

    def __init__(self, trt: ModuleType, spec: opspec.OpSpec) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name = spec.name
        self.plugin_version = opspec.PLUGIN_VERSION
        self.plugin_namespace = opspec.PLUGIN_NAMESPACE
        self.field_names = declared(trt, spec)
        self._trt = trt
        self._spec = spec

    def create_plugin(self, name: str, field_collection: Any, phase: Any) -> GenericPlugin:
        """Return the plugin of a node.

        Args:
            name: of the node; of the layer when an engine is loaded.
            field_collection: its attributes, from the parser or from the engine.
            phase: build or run time, which need the same.

        Raises:
            ExportError: an attribute is wrong.
        """
        with recorded():
            attributes = attributes_from_fields(self._spec, field_collection, name)
        return plugin_class(self._trt)(self._trt, self._spec, attributes, name)


@cache
def _creator_class(trt: ModuleType) -> type[GenericCreator]:
    made: type[GenericCreator] = new_class("Q2ExportCreator", (GenericCreator, trt.IPluginCreatorV3One))
    made.__module__ = __name__
    return made


def register(trt: ModuleType) -> None:
    """Register a creator for every op that has none yet; those of a loaded C++ library stay in place.

    Args:
        trt: the module that :func:`q2export.plugins.tensorrt.loader.import_tensorrt` returned.

    Raises:
        ExportError: TensorRT refuses a creator.
    """
    registry = trt.get_plugin_registry()
    for spec in opspec.ALL:
        if registry.get_creator(spec.name, opspec.PLUGIN_VERSION, opspec.PLUGIN_NAMESPACE) is not None:
            continue
        creator = _creator_class(trt)(trt, spec)
        if not registry.register_creator(creator, opspec.PLUGIN_NAMESPACE):
            raise ExportError(
                f"{trt.__name__} refuses a plugin creator for {spec.name}: it needs IPluginCreatorV3One"
            )
        _registered.append(creator)


def deregister(trt: ModuleType) -> None:
    """Take back every creator that :func:`register` has registered with this TensorRT."""
    registry = trt.get_plugin_registry()
    own = [creator for creator in _registered if isinstance(creator, trt.IPluginCreatorV3One)]
    for creator in own:
        registry.deregister_creator(creator)
        _registered.remove(creator)
