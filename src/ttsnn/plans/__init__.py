"""TT plans: made by rules or read from JSON, checked against a network."""

from ttsnn.plans.cores import core_names, cores_of_layer, errors_of_layer
from ttsnn.plans.counting import LayerCost, NetworkCost, layer_cost, network_cost
from ttsnn.plans.info import Kind, LayerInfo, find_layer
from ttsnn.plans.plan import PLAN_VERSION, TTLayer, TTPlan
from ttsnn.plans.rules import Rule, make_plan, parse_rule, plan_for

__all__ = [
    "PLAN_VERSION",
    "Kind",
    "LayerCost",
    "LayerInfo",
    "NetworkCost",
    "Rule",
    "TTLayer",
    "TTPlan",
    "core_names",
    "cores_of_layer",
    "errors_of_layer",
    "find_layer",
    "layer_cost",
    "make_plan",
    "network_cost",
    "parse_rule",
    "plan_for",
]
