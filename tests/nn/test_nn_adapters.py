"""Adapters: PEFT's files, several in a batch, and changes while other threads call the model."""

from __future__ import annotations

import copy
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from steelworks.errors import InvalidInputError
from steelworks.nn import Adapter, Adapters, LayerWeights, LoRALinear, apply_lora
from steelworks.nn import adapters as _registry

pytest.importorskip("safetensors")
torch.set_num_threads(1)
X = torch.randn(6, 12, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.body(x))
        return made


LAYERS = ("body.0", "body.2", "head")


def adapter(seed: int, rank: int = 4, layers: tuple[str, ...] = LAYERS, alpha: float = 8) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    net, made = Net(), {}
    for name in layers:
        n, k = net.get_submodule(name).weight.shape  # type: ignore[union-attr,misc]
        a, b = torch.randn(rank, k, generator=generator), torch.randn(n, rank, generator=generator)
        made[name] = LayerWeights(a, b, alpha)
    return Adapter(made)


def alone(given: Adapter, x: torch.Tensor = X) -> torch.Tensor:
    """The answer of a model with this adapter only, by formula."""
    net = Net()
    with torch.no_grad():
        for name, w in given.layers.items():
            linear: Any = net.get_submodule(name)
            linear.weight += w.scale * w.b @ w.a
        result: torch.Tensor = net(x)
    return result


@pytest.fixture
def net() -> Net:
    return Net().eval().requires_grad_(False)


def test_without_an_active_adapter_the_model_answers_as_before(net: Net) -> None:
    want = net(X)
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    assert torch.equal(net(X), want)


def test_the_active_adapter_acts_until_another_is_or_none(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.add("b", adapter(2, rank=3, layers=("head",)))
    plain = net(X)
    for name, given in (("a", adapter(1)), ("b", adapter(2, rank=3, layers=("head",)))):
        adapters.activate(name)
        assert adapters.active == name
        torch.testing.assert_close(net(X), alone(given), rtol=1e-4, atol=1e-4)
    adapters.activate(None)
    assert torch.equal(net(X), plain)


@pytest.mark.parametrize("lengths", [(), (3,), (2, 3)])
def test_each_row_gets_the_adapter_it_names(net: Net, lengths: tuple[int, ...]) -> None:
    given = {"a": adapter(1), "b": adapter(2, rank=2), "c": adapter(3, layers=("body.2",))}
    adapters = Adapters(net)
    for name, one in given.items():
        adapters.add(name, one)
    names = ["a", "b", None, "a", "c", "c"]
    x = torch.randn(6, *lengths, 12)
    with adapters.use(names):
        got = net(x)
    for row, name in enumerate(names):
        want = Net()(x[row]) if name is None else alone(given[name], x[row])
        torch.testing.assert_close(got[row], want, rtol=1e-4, atol=1e-4)


def test_use_ends_with_its_block_and_may_be_nested(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.add("b", adapter(2))
    plain = net(X)
    with adapters.use("a"):
        of_a = net(X)
        with adapters.use("b"):
            assert not torch.equal(net(X), of_a)
        assert torch.equal(net(X), of_a)
        with adapters.use(None):
            assert torch.equal(net(X), plain)
    assert torch.equal(net(X), plain)


def test_a_block_keeps_the_adapters_of_its_begin(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    with adapters.use("a"):
        before = net(X)
        adapters.remove("a")
        adapters.add("z", adapter(7))
        assert torch.equal(net(X), before)
    with pytest.raises(InvalidInputError, match="no adapter 'a'; there are: 'z'"):
        adapters.use("a").__enter__()


def test_another_number_of_names_than_rows_is_refused(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    with adapters.use(["a", "a"]), pytest.raises(InvalidInputError, match=r"2 names .* shape \(6, 12\)"):
        net(X)


def test_an_error_in_a_call_leaves_no_selection_behind(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.activate("a")
    with pytest.raises((InvalidInputError, RuntimeError)):
        net(torch.zeros(2, 3))
    adapters.activate(None)
    assert torch.equal(net(X), Net()(X))


def test_removing_the_active_adapter_gives_the_plain_model(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.activate("a")
    adapters.remove("a")
    assert (adapters.active, adapters.names, len(adapters), "a" in adapters) == (None, (), 0, False)
    assert torch.equal(net(X), Net()(X))


def test_a_taken_name_is_refused_unless_it_is_to_be_exchanged(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    with pytest.raises(InvalidInputError, match="replace=True"):
        adapters.add("a", adapter(2))
    adapters.add("a", adapter(2), replace=True)
    adapters.activate("a")
    torch.testing.assert_close(net(X), alone(adapter(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act", ["remove", "activate", "__getitem__"])
def test_an_unknown_name_lists_those_there_are(net: Net, act: str) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    with pytest.raises(InvalidInputError, match="no adapter 'q'; there are: 'a'"):
        getattr(adapters, act)("q")


def test_an_adapter_for_another_model_is_refused_and_changes_nothing(net: Net) -> None:
    adapters = Adapters(net)
    bad = dict(adapter(1).layers)
    bad["head"] = LayerWeights(torch.zeros(2, 7), torch.zeros(5, 2), 1)
    with pytest.raises(InvalidInputError, match=r"'head' has 16 inputs and 5 outputs"):
        adapters.add("a", Adapter(bad))
    with pytest.raises(InvalidInputError, match=r"no layer 'tail'.* body\.0, body\.2, head"):
        adapters.add("a", Adapter({"tail": bad["head"]}))
    with pytest.raises(InvalidInputError, match="Sequential"):
        adapters.add("a", Adapter({"body": bad["head"]}))
    assert len(adapters) == 0
    assert type(net.head) is nn.Linear


def test_the_added_weights_are_copies(net: Net) -> None:
    adapters, given = Adapters(net), adapter(1)
    adapters.add("a", given)
    adapters.activate("a")
    want = net(X)
    for w in given.layers.values():
        w.a.zero_()
    assert torch.equal(net(X), want)


def test_state_dict_and_modules_stay_and_restore_gives_the_classes_back(net: Net) -> None:
    before, modules = copy.deepcopy(net.state_dict()), list(net.modules())
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.activate("a")
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    with pytest.raises(InvalidInputError, match="restore"):
        copy.deepcopy(net)
    with pytest.raises(InvalidInputError, match="has a registry"):
        Adapters(net)
    adapters.restore()
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert type(net.head) is nn.Linear
    assert torch.equal(copy.deepcopy(net)(X), Net()(X))
    with pytest.raises(InvalidInputError, match="restored"):
        adapters.add("a", adapter(1))


def test_a_part_that_is_called_alone_uses_the_active_adapter(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.activate("a")
    whole = net(X)
    assert torch.equal(net.head(net.body(X)), whole)


# ---------------------------------------------------------------- changes under load


def test_answers_under_hot_swap_are_those_of_one_adapter_each(net: Net) -> None:
    """Each of three threads calls on while adapters are exchanged, activated and removed."""
    adapters = Adapters(net)
    given = [adapter(seed) for seed in range(4)]
    for at, one in enumerate(given):
        adapters.add(f"probe{at}", one)
    allowed = [net(X)]
    for at in range(4):
        with adapters.use(f"probe{at}"):
            allowed.append(net(X))
    assert len({tuple(a.flatten().tolist()) for a in allowed}) == 5
    for at in range(4):
        adapters.remove(f"probe{at}")
    stop, started, wrong = threading.Event(), threading.Barrier(4), []
    seen: list[set[int]] = [set() for _ in range(3)]
    calls = [0, 0, 0]

    def call(mine: int) -> None:
        torch.set_num_threads(1)
        started.wait(30)
        while not stop.is_set():
            got = net(X)
            hits = [at for at, want in enumerate(allowed) if torch.equal(got, want)]
            if len(hits) != 1:
                wrong.append(got)
                return
            seen[mine].add(hits[0])
            calls[mine] += 1

    threads = [threading.Thread(target=call, args=(mine,)) for mine in range(3)]
    for thread in threads:
        thread.start()
    started.wait(30)
    try:
        for turn in range(10_000):
            adapters.add("hot", given[turn % 4], replace=True)
            if turn % 5 == 0:
                adapters.activate("hot")
            if turn % 7 == 3:
                adapters.remove("hot")
            if turn > 100 and all(len(s) > 2 for s in seen) and min(calls) > 50:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not wrong, "an answer is of no single adapter"
    assert all(len(s) > 2 for s in seen), seen


def test_mixed_rows_under_hot_swap_are_right_in_every_row(net: Net) -> None:
    adapters = Adapters(net)
    given = [adapter(seed) for seed in range(3)]
    adapters.add("left", given[0])
    adapters.add("right", given[1])
    names = ["left", "right", "left", None, "right", "left"]
    allowed = []
    for one in (1, 2):
        adapters.add("right", given[one], replace=True)
        with adapters.use(names):
            allowed.append(net(X))
    assert not torch.equal(*allowed)
    stop, done, wrong, counts = threading.Event(), threading.Semaphore(0), [], [0, 0]

    def call() -> None:
        torch.set_num_threads(1)
        while not stop.is_set() and not wrong:
            with adapters.use(names):
                got = net(X)
            hits = [at for at, want in enumerate(allowed) if torch.equal(got, want)]
            if len(hits) != 1:
                wrong.append(got)
            else:
                counts[hits[0]] += 1
            done.release()

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(40):
            adapters.add("right", given[1 + turn % 2], replace=True)
            adapters.add(f"other{turn}", adapter(turn + 10))
            adapters.remove(f"other{turn}")
            assert done.acquire(timeout=30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert not wrong, "a row is of another adapter than it names"
    assert all(counts), counts


def test_a_state_change_within_a_call_waits_for_the_next_call(net: Net) -> None:
    """The exchange happens between two layers of one call, in the calling thread itself."""
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.activate("a")
    want = net(X)

    def swap(*_: Any) -> None:
        adapters.add("a", adapter(2), replace=True)

    handle = net.body[1].register_forward_hook(swap)
    assert torch.equal(net(X), want)
    handle.remove()
    assert not torch.equal(net(X), want)


def test_on_a_gpu_weights_stay_until_no_call_holds_them_and_the_device_is_done(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    monkeypatch.setattr(_registry, "_asynchronous", lambda device: True)
    monkeypatch.setattr(_registry, "_wait", lambda stacks: waited.append(len(stacks)))
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    assert waited == [3], "the new weights must be there before another stream reads them"
    weights = weakref.ref(adapters._state.stacks["head"].a)
    with adapters.use("a"):
        adapters.activate("a")
        adapters.remove("a")
        assert weights() is not None
        assert len(adapters._retired) == 1
    assert weights() is not None, "a kernel may still read them"
    waited.clear()
    adapters.add("b", adapter(2))
    assert waited == [3, 3]
    assert weights() is None
    assert not adapters._retired


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exchanging_adapters_compiles_nothing_anew(net: Net) -> None:
    adapters = Adapters(net)
    for seed in range(3):
        adapters.add(str(seed), adapter(seed))
    adapters.activate("0")
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter)
    compiled(X)
    before = counter.frame_count
    for name in ("1", "2", None, "0"):
        adapters.activate(name)
        torch.testing.assert_close(compiled(X), net(X))
    adapters.add("1", adapter(7), replace=True)
    with adapters.use(["1", None, "2", "0", "1", "1"]):
        torch.testing.assert_close(compiled(X), net(X))
    assert counter.frame_count == before
    torch.compiler.reset()


def test_compiled_code_does_not_keep_the_adapters_of_its_first_call(net: Net) -> None:
    adapters = Adapters(net)
    adapters.add("a", adapter(1))
    adapters.add("b", adapter(2))
    compiled = torch.compile(net, backend="eager")
    for name in ("a", "b", None, "a"):
        adapters.activate(name)
        want = net(X)
        torch.testing.assert_close(compiled(X), want)
    with adapters.use(["a", "b", None, "a", "b", "a"]):
        torch.testing.assert_close(compiled(X), net(X))
    torch.compiler.reset()


# ---------------------------------------------------------------- files


def trained(targets: list[str], **options: Any) -> Net:
    net = Net()
    apply_lora(net, targets, **options)
    for m in net.modules():
        if isinstance(m, LoRALinear):
            nn.init.normal_(m.lora_b)
    return net.eval()


def test_what_is_saved_loads_with_the_same_bits(tmp_path: Path, net: Net) -> None:
    model = trained(["0", "head"], rank=3, alpha=5, dropout=0.25)
    Adapter.of(model).save(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert loaded.dropout == 0.25
    for name, w in Adapter.of(model).layers.items():
        assert torch.equal(loaded.layers[name].a, w.a)
        assert torch.equal(loaded.layers[name].b, w.b)
        assert loaded.layers[name].scale == w.scale
    adapters = Adapters(net)
    adapters.load(tmp_path, "a")
    adapters.activate("a")
    torch.testing.assert_close(net(X), model(X))
    adapters.save("a", tmp_path / "again")
    assert Adapter.load(tmp_path / "again").layers.keys() == loaded.layers.keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "again",
    ]


def test_a_loaded_adapter_can_be_trained_on(tmp_path: Path) -> None:
    model = trained(["head"], rank=2, alpha=3)
    Adapter.of(model).save(tmp_path)
    again = Net()
    assert Adapter.load(tmp_path).apply(again) == ("head",)
    torch.testing.assert_close(again(X), model(X))
    assert [n for n, p in again.named_parameters() if p.requires_grad] == ["head.lora_a", "head.lora_b"]


def test_a_model_without_lora_has_no_adapter() -> None:
    with pytest.raises(InvalidInputError, match="no LoRALinear"):
        Adapter.of(Net())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "uses bias"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"lora_alpha": None}, "lora_alpha is None"),
    ],
)
def test_what_plain_lora_has_not_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    adapter(1).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidInputError, match=said):
        Adapter.load(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no adapter_config.json"):
        Adapter.load(tmp_path)
    adapter(1).save(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1234")
    with pytest.raises(InvalidInputError, match="can't be read"):
        Adapter.load(tmp_path)


def test_other_tensors_in_the_file_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapter(1).save(tmp_path)
    save_file({"base_model.model.head.bias": torch.zeros(5)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InvalidInputError, match=r"'base_model\.model\.head\.bias' is not of LoRA"):
        Adapter.load(tmp_path)
