"""A fit comes back from its file exactly; what is damaged or of another network is refused in one sentence."""

import json
import math
import shutil
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from espalier import Training, shelf, store
from espalier.network import BayesianNetwork
from espalier.prediction.fit import WAYS, Fit
from fitted import BATCH, TOLERANCE, conv_net, digits, mlp_net, trained
from hashed import hashes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trained("conv")[0].save(tmp_path / "run")
    return tmp_path / "run"


def fresh(name: str = "conv") -> BayesianNetwork:
    net = (conv_net if name.startswith("conv") else mlp_net)()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)  # nothing of it may be left in a loaded fit
    return BayesianNetwork(net)


@pytest.mark.parametrize("name", ["mlp", "mlp-rescaled", "mlp-rigl", "conv"])
def test_a_saved_fit_comes_back_exactly(name: str, tmp_path: Path) -> None:
    fit, _ = trained(name)
    fit.save(tmp_path / "run")
    back = Fit.load(tmp_path / "run", fresh(name))
    assert torch.equal(back.topology.positions, fit.topology.positions)
    assert back.topology[1:] == fit.topology[1:]
    assert torch.equal(back.pairs.values, fit.pairs.values)
    assert torch.equal(back.pairs.keep, fit.pairs.keep)
    assert (back.keep_prob, back.rescale) == (fit.keep_prob, fit.rescale)
    assert back.record == json.loads(json.dumps(fit.record))
    assert back.history == fit.history
    back.inputs = fit.inputs
    for how in WAYS:
        assert torch.equal(back.predict(digits().test.x, how), fit.predict(digits().test.x, how))
    mine, theirs = back.ticket().state_dict(), fit.ticket().state_dict()
    assert sorted(mine) == sorted(theirs)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())


def test_redraw_of_a_loaded_fit_with_batch_norm_asks_for_inputs_in_one_sentence(saved: Path) -> None:
    fit, back = trained("conv")[0], Fit.load(saved, fresh())
    x = digits().test.x
    for how in ("ticket", "pairs", "mean", "unmasked"):
        back.predict(x, how)
    with pytest.raises(
        ValueError, match=r"^expected training inputs for batch-norm statistics[^\n]*fit\.look_at\(data\) first$"
    ) as info:
        back.predict(x, "redraw")
    assert "\n" not in str(info.value)
    back.inputs = [digits().train.x[i * BATCH : (i + 1) * BATCH] for i in range(16)]
    torch.testing.assert_close(back.predict(x, "redraw"), fit.predict(x, "redraw"), rtol=0, atol=TOLERANCE)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(bytes(data))


def _edit(path: Path) -> None:
    facts = json.loads(path.read_text())
    facts["num_active"] += 1
    path.write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("fit.safetensors", _truncate),
        ("fit.safetensors", _flip),
        ("pairs/*", _truncate),
        ("pairs/*", _flip),
        ("history.json", _flip),
        ("record.json", _truncate),
        ("record.json", _edit),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(saved: Path, file: str, damage: Callable[[Path], None]) -> None:
    Fit.load(saved, fresh())
    (path, *_) = saved.glob(file)
    damage(path)
    with pytest.raises(ValueError, match=r"^expected .*(was altered|is cut short or altered)") as info:
        Fit.load(saved, fresh())
    assert path.name in str(info.value)
    assert "\n" not in str(info.value)


def test_a_folder_without_a_finished_fit_is_refused(saved: Path) -> None:
    (saved / "record.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a finished run in .*no record\.json"):
        Fit.load(saved, fresh())


def test_a_fit_of_another_network_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a network with layers of \(72, 1152, 2560\) weights, got"):
        Fit.load(saved, fresh("mlp"))


def test_a_fit_of_a_network_of_as_many_weights_is_refused(tmp_path: Path) -> None:
    """Another kernel, another name, and parameters beside the weights."""

    def made(kernel: tuple[int, int], norm: bool = False, named: str = "0") -> BayesianNetwork:
        torch.manual_seed(0)
        last: nn.Module = nn.LayerNorm(32, elementwise_affine=norm)
        layers = {named: nn.Conv2d(1, 1, kernel), "flat": nn.Flatten(), "norm": last, "top": nn.Linear(32, 10)}
        return BayesianNetwork(nn.Sequential(OrderedDict(layers)))

    training = Training(epochs=1, batch_size=64, device="cpu")
    fit = shelf.load("inference", "cigl")(made((1, 5)), digits(), sparsity=0.5, drop_rate=0.1, training=training)
    fit.save(tmp_path / "fit")
    assert torch.equal(Fit.load(tmp_path / "fit", made((1, 5))).pairs.values, fit.pairs.values)
    for other, said in ((made((5, 1)), r"0\.weight \[1, 1, 1, 5\], got"), (made((1, 5), named="a"), r".*, got a\.weight"),
                        (made((1, 5), norm=True), r"net\.norm\.bias of shape None, got \(32,\)")):  # fmt: skip
        with pytest.raises(ValueError, match=f"expected a network with {said}"):
            Fit.load(tmp_path / "fit", other)


def test_saving_overwrites_nothing(saved: Path) -> None:
    before = hashes(saved)
    pairs = [name for name in before if name.startswith("pairs/")]
    assert list(before) == ["fit.safetensors", "history.json", *pairs, "record.json"]
    assert len(pairs) == len(trained("conv")[0].pairs.values)
    with pytest.raises(ValueError, match="expected a folder without a fit, but .* holds one"):
        trained("mlp")[0].save(saved)
    assert hashes(saved) == before


@pytest.mark.parametrize("name", ["conv", "mlp-rigl"])
def test_the_file_is_plain_safetensors_with_packed_masks(name: str, tmp_path: Path) -> None:
    fit, _ = trained(name)
    fit.save(tmp_path / "run")
    path = tmp_path / "run" / "fit.safetensors"
    tensors = load_file(path)
    total, active, pairs = fit.topology.num_weights, fit.topology.num_active, len(fit.pairs.values)
    gaps = np.frombuffer(zlib.decompress(tensors["topology.gaps"].numpy().tobytes()), dtype=np.uint8)
    assert gaps.max() < 255, "one byte a weight here"
    np.testing.assert_array_equal(np.cumsum(gaps.astype(int) + 1) - 1, fit.topology.positions.numpy())
    assert tensors["topology.gaps"].numel() < math.ceil(total / 8)
    digests = store.read_bundle(path).facts["pairs"]
    assert len([*(tmp_path / "run" / "pairs").iterdir()]) == len(digests) == pairs
    for index, digest in enumerate(digests):
        pair = load_file(tmp_path / "run" / "pairs" / f"{digest[:16]}.safetensors")
        assert (pair["values"].dtype, pair["values"].shape) == (torch.float32, (active,))
        assert ("keep" in pair) == (fit.keep_prob < 1)
        if "keep" in pair:
            np.testing.assert_array_equal(pair["keep"].numpy(), np.packbits(fit.pairs.keep[index].numpy(), axis=-1))
        tensors |= {f"{index}.{tensor}": pair[tensor] for tensor in pair.keys() - {"values", "keep"}}
    assert max(t.numel() for n, t in tensors.items() if n != "topology") < active  # nothing dense
    for file in hashes(tmp_path / "run"):
        if file.endswith(".safetensors"):
            data = (tmp_path / "run" / file).read_bytes()
            (header,) = struct.unpack("<Q", data[:8])
            json.loads(data[8 : 8 + header])
            own = load_file(tmp_path / "run" / file)
            assert len(data) == 8 + header + sum(t.numel() * t.element_size() for t in own.values())


@pytest.mark.parametrize("name", ["conv", "mlp-rigl"])
def test_a_fit_of_the_time_when_all_pairs_were_in_one_file_is_read(name: str, tmp_path: Path) -> None:
    fit, _ = trained(name)
    fit.save(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "pairs")
    record = store.check_signed(tmp_path / "run" / "record.json")
    record["files"]["fit.safetensors"] = store.write_bundle(tmp_path / "run" / "fit.safetensors", fit.bundle())
    store.write_bytes(tmp_path / "run" / "record.json", store.canonical(store.signed(record)).encode())
    old, before = Fit.load(tmp_path / "run", fresh(name)).bundle().tensors, fit.bundle().tensors
    assert old.keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in old.items())


def test_a_file_of_somebody_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text("mine")
    with pytest.raises(ValueError, match=r"holds history\.json, which would be overwritten"):
        trained("mlp")[0].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["history.json"]
