"""What every file in `backends/` promises, and how a runtime's own times find their way back to units."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor

from asdm.measure import backends
from asdm.measure.backends import Attribution, _onnx, fake, onnxruntime, openvino
from asdm.measure.clocks import HostClock
from asdm.plan.edits import ReplaceUnit
from asdm.unet.blocks import iter_parts, iter_units
from asdm.unet.surgery import replacement_for
from asdm.utils import locks, registry
from tests.commands import files_in
from tests.tiny import SMALLEST, hooks_on, make_unet, unet_args

ON_A_GPU = ("cudagraph", "tensorrt")  # whose tests are in test_gpu.py and test_gpu_runtimes.py
PLAIN = SMALLEST | {"down_block_types": ["DownBlock2D"]}
BACKENDS = [name for name in registry.names("asdm.measure.backends") if name not in ON_A_GPU]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of the tests' own, so that the first session of each graph really exports it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASDM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return make_unet(**SMALLEST)


@pytest.fixture(scope="module", params=BACKENDS)
def opened(request: pytest.FixtureRequest, small: nn.Module) -> Any:
    """(backend, session, UNet) of every file, each opened once."""
    backend = backends.load(request.param, "fp32", "cpu")
    with torch.inference_mode(), inductor.patch({"cpp.simdlen": 1}):  # plain loops compile in half the time
        # Compiling takes half a second a kernel, and a Transformer has the most of them.
        unet = make_unet(**PLAIN) if request.param == "compiled" else small
        if not backend.NEEDS_WEIGHTS:
            unet = copy.deepcopy(unet).to("meta")
        yield backend, backend.open_session(unet, unet_args(), list(iter_parts(unet)), HostClock()), unet


# ---------------------------------------------------------------------------------------------- the contract


def test_a_backend_says_what_it_needs_and_what_it_has(opened: Any) -> None:
    backend, session, _ = opened
    assert isinstance(backend.NEEDS_WEIGHTS, bool)
    assert isinstance(backend.HOOKED, bool)
    assert backend.WEIGHT_COPIES >= 0
    assert backend.ACTIVATION_COPIES >= 0
    assert "fp32" in backend.DTYPES
    assert isinstance(backend.DEVICES, tuple)
    assert (session.attribution is None) == (backend.HOOKED or not backend.NEEDS_WEIGHTS)


def test_it_gives_eagers_output(opened: Any) -> None:
    backend, session, unet = opened
    out = session.output()
    assert (out is not None) == backend.NEEDS_WEIGHTS
    if out is not None:
        with torch.no_grad():
            assert relative(out, unet(**unet_args())[0]) < 1e-3


def test_its_parts_are_eagers_and_make_up_the_whole(opened: Any) -> None:
    _, session, unet = opened
    session.run_parts()  # the first call may compile
    for _ in range(20):  # all of six runs may take less time than another process has the core for
        runs = [session.run_parts() for _ in range(6)]
        for whole, parts in runs:
            assert set(parts) == {part.fqn for part in iter_parts(unet)}
            assert whole > 0
            assert all(seconds >= 0 for seconds in parts.values())
        covered = sorted(sum(parts.values()) / whole for whole, parts in runs)[3]
        if 0.4 < covered < 1.25:
            break
        time.sleep(0.05)
    assert 0.4 < covered < 1.25
    for unit in iter_units(unet):
        assert sum(parts[unit.fqn] for _, parts in runs) > 0, unit.fqn


def test_a_bare_call_takes_time(opened: Any) -> None:
    assert opened[1].run() > 0


def test_it_says_how_well_its_times_were_mapped(opened: Any) -> None:
    """In the middle of seven calls: another process on the same cores takes its time from some of them."""
    _, session, _ = opened
    if session.attribution is not None:
        for _ in range(7):
            session.run_parts()
        assert len(session.attribution.mapped) == len(session.attribution.slowdown)
        assert all(0 < share <= 1 for share in session.attribution.mapped)
        assert sorted(session.attribution.mapped[-7:])[3] > 0.5
        assert all(slowdown > 0 for slowdown in session.attribution.slowdown)


def test_it_leaves_the_unet_as_it_was(opened: Any) -> None:
    _, session, unet = opened
    before = hooks_on(unet)
    session.run_parts()
    assert hooks_on(unet) == before
    assert [name for name, module in unet.named_modules() if "forward" in vars(module)] == []


def relative(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.float() - expected.float()).abs().max() / expected.abs().max())


# ---------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("name", "dtype", "device", "words"),
    [
        ("onnxruntime", "bf16", "cpu", r"onnxruntime does not support the dtype bf16 here; choose from fp32\.$"),
        ("openvino", "fp16", "cpu", "openvino does not support the dtype fp16 here; choose from fp32"),
        ("openvino", "fp32", "cuda:0", r"openvino does not support the device cuda:0 here; choose from cpu\.$"),
        ("vulkan", "fp32", "cpu", "unknown name 'vulkan' in backends; choose from compiled, cudagraph, eager"),
    ],
)
def test_what_a_backend_lacks_gets_one_sentence(name: str, dtype: str, device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        backends.load(name, dtype, device)


def test_a_missing_extra_gets_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "asdm.measure.backends.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"'openvino' of backends needs the package 'openvino', .* not installed"):
        backends.load("openvino", "fp32", "cpu")


def test_openvino_runs_in_bf16_on_the_fp32_graph() -> None:
    if not openvino.HAS_BF16:
        pytest.skip("OpenVINO has no bf16 on this CPU")
    unet = make_unet(**SMALLEST).bfloat16()
    inputs = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in unet_args().items()}
    backend = backends.load("openvino", "bf16", "cpu")
    with torch.inference_mode():
        out = backend.open_session(unet, inputs, list(iter_parts(unet)), HostClock()).output()
        expected = make_unet(**SMALLEST)(**unet_args())[0]
    assert relative(out, expected) < 0.1


# ---------------------------------------------------------------------------------------------- names back to parts


def test_every_node_of_the_exported_graph_has_a_path(small: nn.Module) -> None:
    import onnx

    graph = onnx.load(str(_onnx.cached(small, unet_args())), load_external_data=False).graph
    assert len(graph.node) > 100
    assert [node.name for node in graph.node if _onnx.SEPARATOR not in node.name] == []


def test_weights_made_in_inference_mode_keep_their_paths(tmp_path: Path) -> None:
    """Replacements are made there while a UNet is timed; the exporter cannot trace a module that asks for gradients."""
    import onnx

    with torch.inference_mode():
        module = nn.Sequential(OrderedDict(first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(4, 2, 1)))
    path = _onnx.export(module, {"input": torch.randn(1, 3, 8, 8)}, tmp_path)
    names = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node]
    assert {name.partition("|")[0] for name in names} == {"first", "second"}
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_path_through_dictionaries_is_the_modules_own() -> None:
    """As the exporter writes them where it has to trace the bytecode."""
    through = "module.__dict__['_modules']['up_blocks'].3.attentions.2.__dict__['_modules']['norm']"
    assert _onnx._module_path(["", "module", through, "group_norm"]) == "up_blocks.3.attentions.2.norm"


def test_neighbours_lend_their_part_as_the_optimised_graph_would(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without a path belongs to a part that its inputs or outputs in ONNX Runtime's own graph belong to."""
    import onnx

    plain = onnxruntime.options

    def saving() -> Any:
        options = plain()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        return options

    session = onnxruntime.open_session(small, unet_args(), list(iter_parts(small)), HostClock())
    monkeypatch.setattr(onnxruntime, "options", saving)
    _, nodes = session._profile()[0]
    graph = onnx.load(str(tmp_path / "optimised.onnx"), load_external_data=False).graph
    named = {node.name: node for node in graph.node}
    makers = {tensor: node for node in graph.node for tensor in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)

    def parts_near(node: Any, upwards: bool) -> set[str]:
        if upwards:
            near = [makers[tensor] for tensor in node.input if tensor in makers]
        else:
            near = [reader for tensor in node.output for reader in readers.get(tensor, ())]
        known = {other.name: session.scopes.part_of(other.name) for other in near}
        found = {part for part in known.values() if part is not None}
        return found.union(*(parts_near(other, upwards) for other in near if known[other.name] is None))

    lent = [
        (named[node.name], part)
        for node, part in zip(nodes, session.scopes.by_part(nodes, onnxruntime.AFTER_ITS_NODE), strict=True)
        if session.scopes.part_of(node.name) is None
    ]
    assert lent
    assert [node.name for node, part in lent if part not in parts_near(node, True) | parts_near(node, False)] == []


def test_times_are_shares_of_the_observed_call_scaled_to_the_bare_one(small: nn.Module) -> None:
    """3 of 4 ms of nodes lie in conv_in; the observed call took 5 ms and the bare one 10."""
    scopes = _onnx.Scopes(small, list(iter_parts(small)))
    nodes = [
        _onnx.Node("conv_in|0_Conv", 0.001),
        _onnx.Node("ReorderOutput_1", 0.001),
        _onnx.Node("Cast_2", 0.001),
        _onnx.Node("conv_in|3_Add", 0.000),
        _onnx.Node("add_embedding|4_Gemm", 0.001),
    ]
    times = scopes.times(nodes, ("ReorderOutput",), 0.005, 0.010)
    assert times["conv_in"] == pytest.approx(0.003 * 10 / 5)
    assert sum(times.values()) == times["conv_in"]
    assert scopes.attribution == Attribution(mapped=[pytest.approx(0.75)], slowdown=[pytest.approx(0.5)])


# ---------------------------------------------------------------------------------------------- the cache


def test_a_graph_is_exported_once_and_anew_when_a_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[Path] = []

    def export(module: nn.Module, inputs: dict[str, Any], folder: Path, keep_fp16: bool) -> None:
        exported.append(folder)

    monkeypatch.setattr(_onnx, "export", export)
    unet, inputs = make_unet(seed=5), unet_args()
    first = _onnx.cached(unet, inputs)
    assert _onnx.cached(unet, inputs) == first
    assert len(exported) == 1
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] += 1
    assert _onnx.cached(unet, inputs) != first
    assert _onnx.cached(unet, unet_args(batch=2)) != first
    assert len(exported) == 3
    assert _onnx.cached(unet, inputs, keep_fp16=True) != _onnx.cached(unet, inputs)


def test_a_call_does_not_change_the_key_and_a_replaced_unit_does(tiny_unet: nn.Module) -> None:
    edit = ReplaceUnit(unit="down_blocks.0.attentions.0", with_="gri_attention")
    before = _onnx.key_of(tiny_unet, unet_args())
    tiny_unet.set_submodule(edit.unit, replacement_for(tiny_unet, edit))
    replaced = _onnx.key_of(tiny_unet, unet_args())
    with torch.no_grad():
        tiny_unet(**unet_args())
    assert before != replaced == _onnx.key_of(tiny_unet, unet_args())


def test_the_cache_is_bounded_and_the_longest_unused_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path))
    monkeypatch.setenv("ASDM_CACHE_GB", "0.000003")  # 3 kB

    def kept(key: str) -> Path:
        return _onnx.get_or_make(key, 1000, lambda folder: (folder / "graph").write_bytes(b"x" * 1000) and None)

    for key in "abc":
        kept(key)
    kept("a")  # used again, so b is the longest unused
    (tmp_path / "emoji").mkdir()  # what others keep beside it is not ours to remove
    kept("d")
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["a", "c", "d"]
    assert (tmp_path / "emoji").exists()
    with pytest.raises(ValueError, match=r"takes 0\.0 GB, but the cache may hold 3e-06 GB; set ASDM_CACHE_GB"):
        _onnx.get_or_make("e", 4000, lambda _: None)
    for text in ("much", "inf", "nan"):
        monkeypatch.setenv("ASDM_CACHE_GB", text)
        with pytest.raises(ValueError, match=f"ASDM_CACHE_GB must be a number of GB, such as 12, got '{text}'"):
            kept("f")


def test_no_runtime_tells_anything() -> None:
    """ONNX Runtime reads the variable as it is imported; OpenVINO finds no telemetry to import."""
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert sys.modules["openvino_telemetry"] is None
    from openvino.tools.ovc import telemetry_utils

    assert "stub" in telemetry_utils.tm.__name__


LISTENER = """
#include <stdio.h>
#include <stdlib.h>
#include <netdb.h>
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    FILE *log = fopen(getenv("LOOKUPS"), "a");
    fprintf(log, "%s\\n", node ? node : "");
    fclose(log);
    return EAI_FAIL;
}
"""
RUNS = """
import socket, sys, time
import numpy
from asdm.measure.backends import onnxruntime, openvino
for runtime in (onnxruntime, openvino):
    runtime.evaluate(sys.argv[1], {"x": numpy.ones((1, 1), "f4")})
time.sleep(2)
try:
    socket.getaddrinfo("ours.invalid", 1)
except OSError:
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="listens in C")
def test_no_runtime_looks_anything_up_or_writes_to_the_home_folder(tmp_path: Path) -> None:
    """In a process of its own, where every lookup of a name is noted, those of compiled code too; the last is ours."""
    from onnx import TensorProto, helper, save

    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", shape[:1], shape[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "relu.onnx")
    (tmp_path / "listener.c").write_text(LISTENER)
    library, home, log = tmp_path / "listener.so", tmp_path / "home", tmp_path / "lookups"
    home.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "listener.c"], check=True)
    told = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env = told | {"LD_PRELOAD": str(library), "LOOKUPS": str(log), "HOME": str(home)}
    subprocess.run([sys.executable, "-c", RUNS, tmp_path / "relu.onnx"], env=env, check=True)
    assert log.read_text() == "ours.invalid\n"
    assert files_in(home) == []


def test_what_others_use_or_write_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path))
    monkeypatch.setenv("ASDM_CACHE_GB", "0.000001")  # 1 kB
    for name in ("used", "unused", ".half.abcdefgh"):
        (tmp_path / "onnx" / name).mkdir(parents=True)
        (tmp_path / "onnx" / name / "graph").write_bytes(b"x" * 600)
    handle = locks.open_lock(tmp_path / "onnx" / "used")
    assert locks.lock(handle, shared=True)  # as another process holds it
    _onnx.get_or_make("new", 600, lambda folder: (folder / "graph").write_bytes(b"x" * 600) and None)
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == [".half.abcdefgh", "new", "used"]
    os.close(handle)


def test_what_a_new_entry_is_made_of_is_not_evicted_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path))
    monkeypatch.setenv("ASDM_CACHE_GB", "0.000002")  # 2 kB
    source, _ = (_onnx.get_or_make(key, 900, lambda at: (at / "graph").write_bytes(b"x" * 900)) for key in "ab")
    os.utime(source, (0, 0))  # the longest unused
    _onnx.get_or_make("c", 900, lambda at: (at / "graph").write_bytes((source / "graph").read_bytes()), source=source)
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["a", "c"]
    with pytest.raises(ValueError, match=r"^the exported graph and its source take .* the cache may hold 2e-06"):
        _onnx.get_or_make("d", 1200, lambda _: None, source=source)
    assert source.exists()


def test_an_export_that_fails_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASDM_CACHE", str(tmp_path))

    def half(folder: Path) -> None:
        (folder / "model.onnx").write_text("half")
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        _onnx.get_or_make("key", 1000, half)
    assert list((tmp_path / "onnx").iterdir()) == []


def test_fake_times_are_arithmetic(small: nn.Module) -> None:
    unet = copy.deepcopy(small).to("meta")
    session = fake.open_session(unet, unet_args(), list(iter_parts(unet)), HostClock())
    whole, parts = session.run_parts()
    assert whole == pytest.approx(sum(parts.values()) + fake.SECONDS_PER_PART, rel=0.05)


def test_what_is_compiled_first_is_in_no_units_time(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever compiles at its first call takes 50 ms for it here."""

    def compiled(forward: Any, **_: Any) -> Any:
        seen: list[int] = []

        def call(*args: Any, **kwargs: Any) -> Any:
            time.sleep(0 if seen else 0.05)
            seen.append(1)
            return forward(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", compiled)
    backend = backends.load("compiled", "fp32", "cpu")
    with torch.inference_mode():
        session = backend.open_session(small, unet_args(), list(iter_parts(small)), HostClock())
        session.run()
        _, parts_s = session.run_parts()
    assert max(parts_s.values()) < 0.05
