"""A candidate of which everything was measured, to be changed where a test wants."""

from __future__ import annotations

from typing import Any

import pytest

from validate.results import (
    Accuracy,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    Clipping,
    Cost,
    EngineFile,
    EngineRun,
    Latency,
    LayerError,
    NodeCounts,
    OutputDistance,
    Speedup,
)


def layer(sqnr_db: float, node: str = "conv") -> LayerError:
    return LayerError(
        node=node,
        op_type="Conv",
        tensor=f"{node}_out",
        depth=0,
        precision="int8",
        sqnr_db=sqnr_db,
        isolated_sqnr_db=sqnr_db,
        clipped_share=0.5,
    )


def speedup(value: float, **changes: Any) -> Speedup:
    fields = {"against": "TensorRT FP16", "value": value, "basis": "measured", "on_target": True, "source": "an L4"}
    return Speedup(**{**fields, **changes})


def engine_run(**changes: Any) -> EngineRun:
    """Return an engine that computes what its simulation does, within the rounding floor."""
    file = EngineFile(
        path="model.engine",
        sha256="5e" * 32,
        library="tensorrt 11.0.0.114",
        gpu="NVIDIA L4 (compute capability 8.9)",
        driver="580.159",
        size_bytes=9,
    )
    output = OutputDistance(
        tensor="logits",
        to_float_db=30.0,
        simulation_to_float_db=30.2,
        to_simulation_db=48.0,
        floor_db=47.5,
        excess_db=-0.5,
        excess_low_db=-0.9,
        not_finite=0,
    )
    fields = {"file": file, "agreement": 0.998, "compared": 16, "outputs": [output], "inner_tensors": 7}
    return EngineRun.model_validate({**fields, "departure": None, **changes})


@pytest.fixture
def measured() -> Candidate:
    """Return a candidate that is 1 point worse, built, run as an engine, 1.5 times as fast as FP16 on its target."""
    return Candidate(
        name="mse",
        strategy="mse",
        plan="plans/mse.json",
        plan_hash="ab" * 32,
        float_layers=[],
        selection_error=None,
        accuracy=CandidateAccuracy(
            metric="top1",
            higher_is_better=True,
            is_rate=True,
            basis="engine",
            value=0.89,
            n=1000,
            drop=0.01,
            ci_low=0.005,
            ci_high=0.015,
            confidence=0.95,
            method="Tango score",
        ),
        engine=engine_run(),
        latency=Latency(
            runtime="TensorRT 11",
            device="NVIDIA L4",
            batch_size=4,
            runs=400,
            p50_ms=1.0,
            p90_ms=2.0,
            p99_ms=3.0,
            p99_low_ms=2.8,
            p99_high_ms=3.3,
        ),
        cost=Cost(basis="measured", value=1, unit="ms", source="an L4"),
        int8_mac_share=1.0,
        speedups=[speedup(1.5, ci_low=1.4, ci_high=1.6, confidence=0.95)],
        nodes=NodeCounts(int8=1, fp16=0, fp32=0),
        size_bytes=1000,
        tensorrt_build=BuildResult(ok=True, backend="tensorrt", version="11", message="builds it"),
        layers=[layer(30.0), layer(20.0, "head")],
        clipping=Clipping(share=0.002, tensor="x", split="validation", samples=1000),
    )


@pytest.fixture
def reference() -> Accuracy:
    return Accuracy(metric="top1", higher_is_better=True, is_rate=True, value=0.9, n=1000)
