"""A synthetic run that looks like a real one, to make reports from; and a reader and a browser for pages."""

from __future__ import annotations

import base64
import io
import math
import random
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from PIL import Image

from validate.results import (
    Accuracy,
    Baseline,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    Cost,
    Decision,
    Departure,
    EngineFile,
    EngineRun,
    ForwardPasses,
    Int8InEngine,
    IntegerKernels,
    Latency,
    LayerError,
    ModelInfo,
    NodeCounts,
    OutputDistance,
    Reference,
    Results,
    Rule,
    Search,
    Speedup,
    Trial,
    Verdict,
)
from validate.results.illustrations import (
    ILLUSTRATIONS,
    Convergence,
    ConvergencePoint,
    Histogram,
    Illustrations,
    TensorHistogram,
    Threshold,
    WorstSample,
)
from validate.results.pareto import pareto_points
from validate.results.samples import SAMPLES_FILE, SampleTable

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

METRIC = "exact_match"
REFERENCE = 0.9425
SAMPLES = 400
PASSING, FALLEN = "percentile-99.99+float", ["blocks.2/Conv_7", "head/MatMul"]
BuildResults = Callable[..., Results]

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

_ASCII = str.maketrans({"\N{MINUS SIGN}": "-", "\N{MULTIPLICATION SIGN}": "x"})

_OPERATORS = ("Conv", "HardSwish", "Conv", "Relu", "Conv", "Add", "Resize", "Conv", "Softmax", "MatMul")


def _node(depth: int, layers: int) -> str:
    if depth == 7:
        return FALLEN[0]
    return FALLEN[1] if depth == layers - 1 else f"blocks.{depth // 10}/{_OPERATORS[depth % 10]}_{depth}"


def _layers(quality: float, float_layers: list[str], seed: int, layers: int) -> list[LayerError]:
    """Return layers whose SQNR falls with depth, with dips where quantization hurts."""
    rng = random.Random(seed)
    rows = []
    level = 44.0 + quality
    for depth in range(layers):
        node = _node(depth, layers)
        operator = "MatMul" if node == FALLEN[1] else _OPERATORS[depth % 10]
        level -= 12.0 / layers
        sqnr = level + rng.gauss(0, 1.6) - (9 if depth % 23 == 11 else 0)
        in_float = node in float_layers or operator in ("Softmax", "HardSwish")
        precision: Literal["int8", "fp16"] = "fp16" if in_float else "int8"
        if node in FALLEN and node not in float_layers:
            sqnr -= 18
        if depth == 0:
            sqnr = math.inf
        if depth == 20:
            sqnr = -math.inf
        if depth == 31:
            sqnr = math.nan
        rows.append(
            LayerError(
                node=node,
                op_type=operator,
                tensor=f"{node}_output_0",
                depth=depth,
                precision=precision,
                sqnr_db=sqnr,
                isolated_sqnr_db=sqnr + 6,
                clipped_share=0.0002 * (depth % 7) if precision == "int8" else math.nan,
                scale=0.01 + 0.003 * (depth % 11) if precision == "int8" else None,
            )
        )
    return rows


def _accuracy(drop: float, half: float) -> CandidateAccuracy:
    return CandidateAccuracy(
        metric=METRIC,
        higher_is_better=True,
        is_rate=True,
        value=REFERENCE - drop,
        n=SAMPLES,
        drop=drop,
        ci_low=drop - half,
        ci_high=drop + half,
        confidence=0.95,
        method="Newcombe's paired score interval",
    )


def _candidate(
    name: str,
    drop: float,
    half: float,
    quality: float,
    latency: Latency | None,
    build: BuildResult,
    layers: int,
    float_layers: list[str] | None = None,
    integer: float | None = None,
) -> Candidate:
    float_layers = float_layers or []
    strategy = name.partition("-")[0].partition("+")[0]
    return Candidate(
        name=name,
        strategy=strategy,
        plan=f"plans/{name}.json",
        plan_hash=f"{sum(map(ord, name)) * 7919:012x}",
        float_layers=float_layers,
        selection_error=None if float_layers else 0.0004 * 2 ** (-quality / 3),
        accuracy=_accuracy(drop, half),
        integer_kernels=None
        if integer is None
        else IntegerKernels(
            runtime="onnxruntime 1.27.0 CPU, AVX2 without VNNI",
            accuracy=_accuracy(drop - integer, half),
            difference=integer,
        ),
        latency=latency,
        latency_reason=None if latency else "the TensorRT build failed, so there is no engine to time",
        cost=_cost(0.412 + 0.03 * len(float_layers)),
        int8_mac_share=0.97 - 0.06 * len(float_layers),
        speedups=[
            Speedup(against="FP16", value=1.31, basis="estimate", on_target=True, source="roofline of an NVIDIA L4"),
            Speedup(
                against="ONNX Runtime FP32",
                value=1.5,
                ci_low=1.44,
                ci_high=1.57,
                confidence=0.95,
                basis="measured",
                on_target=False,
                source="this CPU",
            ),
        ],
        nodes=NodeCounts(int8=52 - len(float_layers), fp16=13 + len(float_layers), fp32=3),
        size_bytes=10_861_224 + 4_000 * len(float_layers),
        tensorrt_build=build,
        layers=_layers(quality, float_layers, len(name), layers),
    )


def _cost(value: float) -> Cost:
    return Cost(basis="estimate", value=value, unit="ms", source="roofline of an NVIDIA L4 (datasheet: PB-11316-001)")


def _search(candidate: Candidate) -> Search:
    """Return a search that ended at `candidate`, after one trial that fell short and one that was given up."""
    given_up = _accuracy(0.04, 0.03).model_copy(update={"n": 120})
    trials = [
        ("percentile-99.99+1fp16", given_up, True, False, 1),
        ("percentile-99.99+5fp16", _accuracy(0.001, 0.006), False, True, 5),
        (candidate.name, candidate.accuracy, False, True, 2),
    ]
    return Search(
        target="exact_match at most 1 percentage points worse than the float model, with 97.5% confidence",
        precision="fp16",
        effects={
            FALLEN[1]: 0.0231,
            FALLEN[0]: 0.0107,
            **{f"blocks.{i}/Conv_{10 * i}": 0.004 / i for i in range(1, 40)},
        },
        ranking_samples=32,
        ranked_on=24,
        ranking_passes=5.9,
        judging_samples=SAMPLES,
        judging_passes=2.3,
        trials=[
            Trial(
                name=name,
                plan_hash=candidate.plan_hash if name == candidate.name else f"trial-{count}",
                float_layers=[*FALLEN, "a", "b", "c"][:count],
                accuracy=accuracy,
                stopped_early=stopped,
                meets_target=meets,
                cost=_cost(0.412 + 0.03 * count),
            )
            for name, accuracy, stopped, meets, count in trials
        ],
        ended="no plan that is faster is left to try",
    )


def _latency(p50: float) -> Latency:
    return Latency(
        runtime="onnxruntime 1.27.0",
        device="Intel(R) Xeon(R) Platinum 8488C (2 cores)",
        batch_size=1,
        runs=200,
        p50_ms=p50,
        p90_ms=p50 * 1.08,
        p99_ms=p50 * 1.31,
    )


_BUILT = BuildResult(ok=True, backend="tensorrt_rtx", version="1.4.0.76", message="built for SM89", seconds=8.31)
_REFUSED = BuildResult(
    ok=False,
    backend="tensorrt_rtx",
    version="1.4.0.76",
    message="[E] Error Code 4: DequantizeLinear 'x_dq': the zero point must be zero\n[E] no engine",
    seconds=0.42,
)
_UNCHECKED = BuildResult(
    ok=None, backend=None, version=None, message="no TensorRT is installed; pip install tensorrt-rtx"
)


@pytest.fixture(scope="session")
def build_results() -> BuildResults:
    """Return a builder of results: whatever fields of `Results` it is given take the place of its own."""

    def build(layers: int = 68, **changes: object) -> Results:
        candidates = [
            _candidate("minmax", 0.0375, 0.021, -6, _latency(9.6), _UNCHECKED, layers, integer=-0.0125),
            _candidate("percentile-99.99", 0.0125, 0.0118, 1, _latency(9.57), _BUILT, layers),
            _candidate(PASSING, 0.0025, 0.0071, 4, _latency(9.91), _BUILT, layers, FALLEN, -0.0025),
            _candidate("entropy", 0.02, 0.0139, 0, _latency(9.63), _BUILT, layers),
            _candidate("mse", 0.0075, 0.01, 2, None, _REFUSED, layers),
        ]
        reference = Reference(
            accuracy=Accuracy(metric=METRIC, higher_is_better=True, is_rate=True, value=REFERENCE, n=SAMPLES),
            latency=_latency(14.82),
        )
        search = _search(candidates[2])
        results = Results(
            created="2026-11-23T21:27:38Z",
            command="python -m calibrate run examples/ppocr.yaml --set policy.max_drop=0.01",
            model=ModelInfo(
                path="models/ch_PP-OCRv4_rec_infer.onnx", sha256="9f2c" * 16, nodes=68, parameters=2_711_548
            ),
            task="text_recognition",
            data={
                "calibration": {"source": "lines.yaml, split train", "samples": 256, "digest": "a1" * 16},
                "selection": {"source": "lines.yaml, split train", "samples": 64, "digest": "b2" * 16},
                "validation": {
                    "source": "lines.yaml, split test",
                    "samples": 400,
                    "digest": "c3" * 16,
                    "preprocessing": "resized to 48 rows, (x - 127.5) / 127.5",
                },
            },
            reference=reference,
            candidates=candidates,
            selected=PASSING,
            search=search,
            pareto=pareto_points(reference, _cost(0.93), candidates, 10_900_000),
            verdict=Verdict(
                decision=Decision.GO,
                reasons=[
                    "The drop of exact_match is at most 0.96 percentage points; the policy allows 1.00.",
                    "TensorRT-RTX 1.4.0.76 builds the file for SM89.",
                ],
                rules=[
                    Rule(
                        name="max_drop",
                        outcome="pass",
                        message="upper bound 0.96 pp, allowed 1.00 pp",
                        value=0.0025,
                        threshold=0.01,
                    ),
                    Rule(name="min_samples", outcome="pass", message="400 samples, at least 200 asked for"),
                    Rule(name="tensorrt_build", outcome="pass", message="tensorrt_rtx 1.4.0.76 builds it"),
                    Rule(
                        name="min_speedup",
                        outcome="not_measured",
                        threshold=1.2,
                        optional=True,
                        message="no GPU here; latency on a CPU says nothing about a GPU",
                    ),
                ],
            ),
            environment={
                "python": "3.11.9",
                "onnxruntime": "1.27.0",
                "onnx": "1.19.1",
                "tensorrt_rtx": "1.4.0.76",
                "cpu": "Intel(R) Xeon(R) Platinum 8488C",
                "gpu": "none",
                "os": "Linux 6.1.0 x86_64",
            },
            timings={
                "prepare": 1.31,
                "observe": 21.4,
                "plans": 0.92,
                "select": 40.2,
                "fallback": 61.7,
                "evaluate": 128.8,
                "benchmark": 19.3,
                "tensorrt": 33.1,
            },
            forward_passes=[
                ForwardPasses(stage="observe", passes=1, samples=256),
                ForwardPasses(stage="select", passes=5, samples=320),
                ForwardPasses(stage="fallback", passes=21, samples=1344),
                ForwardPasses(stage="evaluate", passes=6, samples=2400),
            ],
            warnings=[
                "3 of 256 calibration samples are near-duplicates of validation samples and are left out.",
                "This CPU has no VNNI: its integer kernels saturate, and a GPU does not.",
            ],
            config={
                "model": "models/ch_PP-OCRv4_rec_infer.onnx",
                "task": {"type": "text_recognition", "characters": "models/characters.txt"},
                "data": {"calibration": {"samples": 256}, "validation": {"samples": 400}},
                "strategies": ["minmax", {"percentile": {"p": 99.99}}, "entropy", "mse"],
                "policy": {"max_drop": 0.01, "confidence": 0.95, "min_samples": 200},
            },
        )
        return results.model_copy(update=changes)

    return build


@pytest.fixture
def results(build_results: BuildResults, tmp_path: Path) -> Results:
    """Return a run that ended in GO."""
    results = build_results()
    return results.model_copy(update={"samples_sha256": write_samples(tmp_path / SAMPLES_FILE, results)})


ENGINE_SHA256 = "5e" * 32


def _on_gpu(p50: float) -> Latency:
    found = {"device": "NVIDIA H200 (compute capability 9.0)", "runtime": "tensorrt_rtx 1.6.1.120"}
    return _latency(p50).model_copy(update=found)


def _engine(departure: Departure | None, to_simulation_db: float) -> EngineRun:
    lost = departure is not None
    return EngineRun(
        file=EngineFile(
            path="model.engine",
            sha256=ENGINE_SHA256,
            library="tensorrt_rtx 1.6.1.120",
            gpu="NVIDIA H200 (compute capability 9.0)",
            driver="580.159",
            size_bytes=11_000_000,
        ),
        agreement=0.0 if lost else 0.985,
        compared=16,
        outputs=[
            OutputDistance(
                tensor="softmax_11.tmp_0",
                to_float_db=math.nan if lost else 15.6,
                simulation_to_float_db=15.8,
                to_simulation_db=to_simulation_db,
                floor_db=16.4,
                excess_db=math.inf if lost else 0.3,
                excess_low_db=math.nan if lost else 0.1,
                not_finite=384 if lost else 0,
            )
        ],
        departure=departure,
        inner_tensors=23,
        int8=Int8InEngine(
            planned=36, ran=24, share=0.8125, not_run=["head/MatMul"], stray_kernels=7, stray_ms=0.021, total_ms=0.52
        ),
    )


@pytest.fixture
def engines(results: Results) -> Results:
    """Return a run on a GPU: the selected candidate's engine is right, another's is lost, and BF16 did not build."""
    departure = Departure(
        node="blocks.2/MatMul_9",
        op_type="MatMul",
        tensor="y",
        kind="not finite",
        before=["blocks.2/quantize", "blocks.1/Add_5"],
        detail="384 of 6144 values are not finite",
    )
    candidates = []
    for candidate in results.candidates:
        ran = {PASSING: _engine(None, 16.9), "minmax": _engine(departure, math.nan)}.get(candidate.name)
        judged = candidate.accuracy.model_copy(update={"basis": "engine" if ran else "simulation"})
        speedups = [x.model_copy(update={"on_target": True}) for x in candidate.speedups]
        changes = {
            "accuracy": judged,
            "engine": ran,
            "engine_reason": None if ran else "TensorRT built no engine of it",
            "integer_kernels": None,
            "speedups": speedups,
            "latency": _on_gpu(0.52) if ran else None,
        }
        if ran:
            simulated = candidate.accuracy.model_copy(update={"value": 0.9312, "drop": 0.0113, "basis": "simulation"})
            changes["simulated"] = simulated
        candidates.append(candidate.model_copy(update=changes))
    float_run = _engine(None, 48.0).model_copy(update={"int8": None})
    baselines = [
        Baseline(name="TensorRT TF32", engine=float_run, accuracy=_accuracy(0.0, 0.001), latency=_on_gpu(0.41)),
        Baseline(name="TensorRT FP16", engine=float_run, accuracy=_accuracy(0.0025, 0.003), latency=_on_gpu(0.299)),
        Baseline(name="TensorRT BF16", engine=None, reason="TensorRT refuses it: no kernel for Conv"),
    ]
    verdict = results.verdict.model_copy(
        update={"basis": "engine", "reasons": ["by the engine: that one", *results.verdict.reasons]}
    )
    reference = results.reference.model_copy(update={"latency": _on_gpu(0.41)})
    changed = {"candidates": candidates, "baselines": baselines, "verdict": verdict, "reference": reference}
    return results.model_copy(update=changed)


@pytest.fixture
def illustrations(results: Results) -> Illustrations:
    """Return what the run kept beside its results."""
    assert results.selected_candidate is not None
    strategies = [candidate.name for candidate in results.candidates if not candidate.float_layers]
    rng = random.Random(5)
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(picture, "JPEG")
    counts = [int(3e6 * math.exp(-0.12 * i) * rng.uniform(0.7, 1.3)) + (i == 127) for i in range(128)]
    return Illustrations(
        plan_hash=results.selected_candidate.plan_hash,
        histograms=[
            TensorHistogram(
                tensor=f"blocks.{i}/input",
                layers=[FALLEN[i]],
                amax=12.8,
                histogram=Histogram(width=0.1, counts=counts),
                thresholds=[
                    Threshold(candidate=name, value=12.8 / (1 + place), clipped_share=0.001 * place)
                    for place, name in reversed(list(enumerate(strategies)))
                ],
            )
            for i in range(2)
        ],
        convergence=[
            Convergence(
                strategy=name,
                tensors=61,
                settled=0.1,
                points=[
                    ConvergencePoint(samples=8 * 2**k, median=0.02 / 2**k, most=0.31 / (k + 1) / 2**k) for k in range(5)
                ],
            )
            for name in strategies
        ],
        worst_samples=[
            WorstSample(
                index=17,
                label="tench",
                slice="night",
                reference=1.0,
                candidate=0.0,
                picture=base64.b64encode(picture.getvalue()).decode(),
            ),
            WorstSample(index=41, label=None, slice=None, reference=1.0, candidate=0.0, text="what a text input says"),
        ],
    )


@pytest.fixture
def folder(results: Results, illustrations: Illustrations, tmp_path: Path) -> Path:
    """Return a folder with the files that a run writes beside its results."""
    folder = tmp_path / "run"
    folder.mkdir()
    illustrations.write(folder / ILLUSTRATIONS)
    (tmp_path / SAMPLES_FILE).rename(folder / SAMPLES_FILE)
    return folder


def write_samples(path: Path, results: Results) -> str:
    """Write scores in which every tenth answer of class c3, and nothing else, is lost to every candidate."""
    count = SAMPLES
    labels = [f"c{i % 8}" for i in range(count)]
    reference = [float(i % 17 != 0) for i in range(count)]
    scores = [0.0 if i % 8 == 3 and (i // 8) % 10 == 0 else reference[i] for i in range(count)]
    contents, slices = [f"{i:064x}" for i in range(count)], ["day" if i % 2 else "night" for i in range(count)]
    candidates = {candidate.name: np.array(scores) for candidate in results.candidates}
    return SampleTable(contents, labels, slices, np.array(reference), candidates).write(path)


class Page(HTMLParser):
    """What a browser makes of a page: its text as it is seen, its scripts, and every attribute."""

    def __init__(self, source: str) -> None:
        """Read the whole of `source`."""
        super().__init__()
        self.seen: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self._raw: str | None = None
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note attributes and scripts; a cell or a paragraph is apart from what is before it."""
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._raw = tag if tag in ("script", "style") else None
        if tag in ("td", "th", "dd", "li", "p", "small"):
            self.seen.append(" ")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        """Be in visible text again."""
        self._raw = None

    def handle_data(self, data: str) -> None:
        """Keep text by what it is in."""
        if self._raw == "script":
            self.scripts[-1] += data
        elif self._raw is None:
            self.seen.append(data)

    @property
    def text(self) -> str:
        """All visible text, each run of white space as one space, mathematical signs in ASCII."""
        return " ".join("".join(self.seen).split()).translate(_ASCII)


@pytest.fixture(scope="session")
def read() -> type[Page]:
    """Return what reads the source of a page."""
    return Page


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Return a headless Chromium."""
    if _CHROMIUM is None:
        pytest.skip("there is no chromium, chrome or chromium-browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Tab]]:
    """Return what opens a file in a new tab (options: those of a playwright context).

    At the end of the test, no tab may have written anything to the console, or have asked for anything but its file.
    """
    contexts, complaints = [], []

    def opened(path: Path, **options: Any) -> Tab:
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if request.url[:4] == "http" else None)
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
