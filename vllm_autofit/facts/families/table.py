"""The family of an architecture, or of a ``model_type`` where a config names no architecture."""

from __future__ import annotations

from vllm_autofit.facts.families.decoder_families import DECODERS
from vllm_autofit.facts.families.other_families import OTHERS

FAMILIES = (*DECODERS, *OTHERS)

BY_ARCHITECTURE = {name: family for family in FAMILIES for name in family.architectures}
BY_MODEL_TYPE = {name: family for family in FAMILIES for name in family.model_types}
