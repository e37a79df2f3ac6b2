"""Models of a repository, as the supervisor sees them."""

from __future__ import annotations

from serving.supervisor.snapshot import ModelSpec


def service(name: str, version: int, asked: float = 0.0) -> dict[str, ModelSpec]:
    """An ensemble of a network and a tokenizer that both models share, whose config does not change."""
    network = f"{name}_network"
    ensemble = f'platform: "ensemble" ensemble_scheduling {{ step {{ model_name: "{network}" }} }}'
    return {
        name: ModelSpec(ensemble, ()),
        network: ModelSpec(f"version_policy {{ specific {{ versions: {version} }} }}", (version,), asked),
    }
