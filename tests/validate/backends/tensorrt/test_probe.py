"""Whether INT8 products need float32 scales: what is assumed without a GPU, and that a real builder takes the probe."""

from __future__ import annotations

import pytest

from validate.backends import local_gpu
from validate.backends.tensorrt import installed_libraries, needs_fp32_scales
from validate.backends.tensorrt.probe import _K, _ROWS, _int8_product

LIBRARIES, REASONS = installed_libraries()


@pytest.mark.skipif("tensorrt_rtx" not in LIBRARIES, reason=" and ".join(REASONS))
class TestTensorRTRTX:
    @pytest.mark.skipif(local_gpu() is not None, reason="a GPU is asked; see tests/gpu")
    @pytest.mark.skipif("tensorrt" in LIBRARIES, reason="tensorrt may be the one that builds")
    def test_without_a_gpu_float32_scales_are_the_safe_answer(self) -> None:
        assert needs_fp32_scales()

    def test_its_builder_takes_the_probe(self) -> None:
        library = LIBRARIES["tensorrt_rtx"]
        trt = library.trt
        builder = trt.Builder(library.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        y = _int8_product(trt, network, network.add_input("x", trt.float32, (_ROWS, _K)))
        assert tuple(y.shape) == (_ROWS, _ROWS)
        network.mark_output(y)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        with library.errors() as errors:
            assert builder.build_serialized_network(network, config) is not None, errors
