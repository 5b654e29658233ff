"""Builds engines from ONNX files; without a GPU through TensorRT-RTX."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from validate.backends import onnx_files as onnxfile
from validate.backends.gpu import local_gpu
from validate.backends.tensorrt.fingerprint import Fingerprint, fingerprint_path, sha256
from validate.backends.tensorrt.library import Library, UnavailableError, find_builder
from validate.backends.tensorrt.listeners import Progress, interruptions, new_monitor
from validate.backends.tensorrt.options import BuildOptions, Profile
from validate.exceptions import JobError
from validate.records import replacing
from validate.results import BuildResult

__all__ = ["RefusedError", "build", "build_engine"]

log = logging.getLogger(__name__)

_NO_INT8_CONVOLUTION = "CHECK(dtype == myelinTypeFloat"
"""What TensorRT-RTX 1.4 to 1.6 say of an INT8 convolution on an H200."""


class RefusedError(JobError):
    """TensorRT does not accept the model; the message is TensorRT's own."""


def build(model: Path, profile: Profile, compute_capability: str) -> BuildResult:
    """Parse the ONNX file strongly typed and build an engine; the engine is not kept.

    Takes `tensorrt` where it finds a GPU, else `tensorrt_rtx`.

    Args:
        model: an ONNX file; external data is found beside it.
        profile: shapes of the inputs with dynamic dimensions; others are ignored.
        compute_capability: what TensorRT-RTX builds for, e.g. ``"8.9"``; `tensorrt` builds for its own GPU.

    Returns:
        `ok` None where no TensorRT can build here, False with TensorRT's own errors where it refuses.
    """
    try:
        library, builder = find_builder(compute_capability, gpu=None)
    except UnavailableError as error:
        return BuildResult(ok=None, backend=None, version=None, message=f"not checked: {error}")
    started = time.perf_counter()
    ahead = f"compute capability {compute_capability}, ahead of time"
    ok, message = True, f"built for {ahead if library.ahead_of_time else 'the GPU of this machine'}"
    try:
        _serialized(library, builder, model, profile, BuildOptions(compute_capability=compute_capability), None)
    except RefusedError as error:
        ok, message = False, str(error)
    seconds = round(time.perf_counter() - started, 2)
    return BuildResult(ok=ok, backend=library.flavour, version=library.version, message=message, seconds=seconds)


def build_engine(
    model: Path | str,
    engine: Path | str,
    profile: Profile | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Fingerprint:
    """Build an engine from an ONNX file, and write it and its fingerprint.

    Args:
        model: an ONNX file; external data is found beside it.
        engine: where the engine goes; the fingerprint goes beside it.
        profile: shapes of the inputs with dynamic dimensions; others are ignored.
        options: how to build.
        progress: called as the build goes on, from any thread.

    Returns:
        The fingerprint that was written.

    Raises:
        JobError: no TensorRT can build this here, or it refuses the model (RefusedError).
        KeyboardInterrupt: Ctrl-C was pressed; the build ends at its next step and nothing is written.
    """
    model, engine, profile, options = Path(model), Path(engine), profile or {}, options or BuildOptions()
    graph = onnxfile.read_onnx(model)
    gpu = local_gpu()
    library, builder = find_builder(options.compute_capability, gpu)
    _require_supported(library, options)
    serialized = _serialized(library, builder, model, profile, options, progress)
    # The old fingerprint goes first: what is left by a process that is killed now is refused, not mistaken.
    fingerprint_path(engine).unlink(missing_ok=True)
    _write(engine, serialized)
    built_on = None if library.ahead_of_time else gpu
    made = Fingerprint(
        gpu=built_on.name if built_on else None,
        compute_capability=built_on.compute_capability if built_on else options.compute_capability,
        flavour=library.flavour,
        version=library.version,
        driver=gpu.driver if gpu else None,
        model=model.name,
        model_sha256=onnxfile.file_hash(model, graph),
        plan_sha256=graph.metadata_props.get(onnxfile.PLAN_KEY),
        engine_sha256=sha256(engine),
        profile=dict(profile),
        outputs=tuple(str(value.name) for value in graph.graph.outputs),
        options=options,
    )
    made.write(engine)
    return made


def _require_supported(library: Library, options: BuildOptions) -> None:
    """Refuse what TensorRT-RTX would ignore (hardware) or look for a library of TensorRT's for (version)."""
    if not library.ahead_of_time:
        return
    if options.version_compatible:
        raise JobError(f"{library} has no version-compatible engines; leave version_compatible out and build one each")
    if options.hardware_compatible != "none":
        raise JobError(
            f"{library} has no hardware_compatible; leave it and compute_capability out for an engine that runs on "
            "every GPU that it supports"
        )
    if options.timing_cache:
        log.warning("%s has no timing cache, as it measures nothing when it builds; timing_cache is ignored", library)


def _serialized(
    library: Library, builder: Any, model: Path, profile: Profile, options: BuildOptions, progress: Progress | None
) -> Any:
    """Return the engine as an `IHostMemory`. Raises RefusedError with TensorRT's own messages."""
    trt = library.trt
    with library.errors() as errors, interruptions() as stop:
        # From TensorRT 11 on every network is strongly typed and the flag is ignored; before, it is needed.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, builder.logger)  # holds the weights until the engine is built
        _parse(parser, model, errors)
        _mark_debug(network, options)
        config = _config(trt, builder, options, library)
        _set_profile(builder, network, config, profile)
        monitor = new_monitor(trt, progress, stop)
        config.progress_monitor = monitor
        cache = None if library.ahead_of_time else _timing_cache(config, options.timing_cache)
        serialized = builder.build_serialized_network(network, config)
        if monitor.failure:
            raise monitor.failure
        if stop.is_set():
            raise KeyboardInterrupt
        if serialized is None:
            raise RefusedError(_said(library, errors))
    if cache is not None and options.timing_cache:
        _write(options.timing_cache, cache.serialize())
    return serialized


def _said(library: Library, errors: list[str]) -> str:
    """Return why a build failed, in TensorRT's own words; what these do not tell is said before them."""
    said = "; ".join(errors) or "refused without a message"
    if _NO_INT8_CONVOLUTION not in said:
        return said
    return (
        f"{library} has no INT8 convolution for this GPU; take another TensorRT, or keep convolutions in float "
        f"(quantization.exclude: {{op_types: [Conv, ConvTranspose]}}). In its words: {said}"
    )


def _parse(parser: Any, model: Path, errors: list[str]) -> None:
    if parser.parse_from_file(str(model)):
        return
    # A description alone may be "false"; the error as a whole names the node too.
    said = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
    raise RefusedError("; ".join(said or errors) or f"{model} cannot be parsed")


def _mark_debug(network: Any, options: BuildOptions) -> None:
    if options.debug == "none":
        return
    if options.debug == "unfused":
        if not network.mark_unfused_tensors_as_debug_tensors():
            raise JobError("TensorRT cannot show the tensors of this network; name some in debug")
        return
    tensors = {}
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        for tensor in (layer.get_output(i) for i in range(layer.num_outputs)):
            tensors[tensor.name] = tensor
    if unknown := set(options.debug) - tensors.keys():
        raise JobError(f"the network has no tensor called {', '.join(sorted(unknown))} that could be looked at")
    # As outputs, not by `mark_debug`: TensorRT-RTX 1.6 takes the mark and never shows the tensor (seen on an H200).
    for name in options.debug:
        if not tensors[name].is_network_output:
            network.mark_output(tensors[name])


def _config(trt: Any, builder: Any, options: BuildOptions, library: Library) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = options.optimization_level
    # Without it the inspector knows no more than the names of layers.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        level = options.hardware_compatible.upper()
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.__members__[level]
    if library.ahead_of_time and options.compute_capability:
        config.num_compute_capabilities = 1  # before it, no target can be set
        target = trt.ComputeCapability.__members__["SM" + options.compute_capability.replace(".", "")]
        if not config.set_compute_capability(target, 0):
            raise RefusedError(f"{library} cannot build for compute capability {options.compute_capability}")
    return config


def _set_profile(builder: Any, network: Any, config: Any, shapes: Profile) -> None:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dynamic = [tensor.name for tensor in inputs if -1 in tuple(tensor.shape)]
    if missing := set(dynamic) - set(shapes):
        names = ", ".join(sorted(missing))
        raise RefusedError(f"the profile gives no shapes for input {names}, whose shape is dynamic")
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name in dynamic:
        profile.set_shape(name, *shapes[name])
    config.add_optimization_profile(profile)


def _timing_cache(config: Any, path: Path | None) -> Any:
    """Give the config the cache in a file; a new one where the file is not there or is another GPU's or version's."""
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not config.set_timing_cache(cache, False):
        log.warning("%s holds the timings of another GPU or TensorRT; it is started anew", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _write(path: Path, data: Any) -> None:
    """Write a buffer whole or not at all. Raises JobError where the folder cannot be written."""
    try:
        with replacing(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}") from error
