"""The sites of a run, its modules, and the statistics to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradscope.legible import one_line
from gradscope.records import STATISTICS
from gradscope.records import ModuleInfo
from gradscope.records import Site
from gradscope.tensorboard.menu import Statistic
from gradscope.tensorboard.menu import statistics_of
from gradscope.tensorboard.replies import Reply
from gradscope.tensorboard.replies import as_json
from gradscope.tensorboard.routes.arguments import span
from gradscope.tensorboard.routes.shown import shown_name
from gradscope.tensorboard.routes.shown import shown_path
from gradscope.tensorboard.view import View

_OF_PARAMETERS = frozenset(("weight", "weight_gradient", "update"))


def answer(view: View, arguments: Mapping[str, str]) -> Reply:
    return Reply(as_json(document(view)), "application/json")


def document(view: View) -> dict[str, Any]:
    first, last = span(view.steps) or (None, None)
    schema = view.schema
    owners = {parameter.name: parameter.module for parameter in view.info.parameters}
    order: dict[str, int] = {}
    for index, site in enumerate(schema.modules):
        order.setdefault(site.path, index)
    sites = {kind: [_site(kind, site, owners) for site in schema.sites(kind)] for kind in STATISTICS}
    return {
        "etag": view.etag,
        "first_step": first,
        "last_step": last,
        "sampled": len(view.steps),
        "kinds": {kind: found for kind, found in sites.items() if found and view.parts},
        "modules": [_module(module, order) for module in view.info.modules],
        "statistics": [_statistic(statistic) for statistic in statistics_of(view)],
        "histograms": sorted({kind for part in view.parts for kind in part.histograms}),
        "cut": view.cut,
    }


def _site(kind: str, site: Site, owners: Mapping[str, str]) -> dict[str, Any]:
    module = owners.get(site.path, site.path.rpartition(".")[0]) if kind in _OF_PARAMETERS else site.path
    return {"path": site.path, "call": site.call, "name": shown_name(site), "module": module}


def _module(module: ModuleInfo, order: Mapping[str, int]) -> dict[str, Any]:
    return {
        "path": module.path,
        "name": shown_path(module.path),
        "type": one_line(module.type),
        "role": module.role,
        "activation": module.activation,
        "order": order.get(module.path),
    }


def _statistic(statistic: Statistic) -> dict[str, Any]:
    return {
        "name": statistic.name,
        "title": statistic.title,
        "kind": statistic.kind,
        "scale": statistic.scale,
        "main": statistic.is_main,
        "text": statistic.text,
    }
