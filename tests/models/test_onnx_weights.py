"""Weights out of an ONNX file, made up as torch's exporter writes them: matrices transposed, equal tensors once."""

import json

import numpy as np
import pytest
import torch
import transformers

from configs.overrides import read_settings
from configs.schema import parse
from console.errors import InputError
from models.library.onnx_weights import CONFIG, OnnxConfig, make_module, read_onnx, write_folder

onnx = pytest.importorskip("onnx")

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SIZES |= {"use_mask_token": False, "mlp_ratio": 2}
POSITIONS = "embeddings.position_embeddings"
RULES = {"prefix": "tower.", "leave": ["head."], "join": {POSITIONS: ["onnx::Concat_1", "onnx::Reshape_2"]}}


def config(**changes):
    return OnnxConfig(**({"model_class": "Dinov2Model", "config": SIZES} | RULES | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    module = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    for index in range(2):  # equal tensors
        module.encoder.layer[index].norm1.weight.data.fill_(1.0)
    return module


def write(path, model, more=()):
    """The model's tensors, a head's, and `more` (name, array), in an ONNX file."""
    tensors, nodes, number = {}, [], 3
    for name, tensor in model.state_dict().items():
        array, module = tensor.numpy(), name.removesuffix(".weight")
        if name == POSITIONS:
            tensors |= {"onnx::Concat_1": array[:, :1], "onnx::Reshape_2": array[:, 1:]}
        elif name == "encoder.layer.1.norm1.weight":
            shared = "tower.encoder.layer.0.norm1.weight"
            nodes.append(onnx.helper.make_node("Identity", [shared], [f"tower.{name}"]))
        elif array.ndim == 2 and name.endswith("weight"):
            raw, number = f"onnx::MatMul_{number}", number + 1
            tensors[raw] = array.T
            place = f"/tower/{module.replace('.', '/').replace('layer/', 'layer.')}/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", raw], [f"{place}_out"], place))
        else:
            tensors[f"tower.{name}"] = array
    tensors |= {"head.bias": np.ones(3, np.float32), "onnx::MatMul_99": np.ones((16, 3), np.float32)}
    tensors["onnx::Gather_7"] = np.arange(3)
    nodes.append(onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_99"], ["y"], "/head/MatMul"))
    tensors |= dict(more)
    initialisers = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    graph = onnx.helper.make_graph(nodes, "made-up", [], [], initialisers)
    onnx.save(onnx.helper.make_model(graph), path)
    return path


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return write(tmp_path_factory.mktemp("onnx") / "model.onnx", model)


def test_every_tensor_is_the_models(model, file, tmp_path):
    tensors, left = read_onnx(file, config(preprocessor={"crop_size": 28, "image_mean": [0.5] * 3}))
    assert left == {"head.": 2, "whole numbers, sizes and places of the graph": 1}
    read = make_module(tensors, config(), str(file))
    assert read.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in read.state_dict().items())
    write_folder(read, config(preprocessor={"crop_size": 28}), tmp_path / "made")
    loaded = transformers.Dinov2Model.from_pretrained(tmp_path / "made")
    image = torch.randn(1, 3, 28, 28)
    assert torch.equal(loaded.eval()(image).last_hidden_state, model(image).last_hidden_state)
    assert json.loads((tmp_path / "made" / "preprocessor_config.json").read_text()) == {"crop_size": 28}
    with pytest.raises(InputError, match="is there already"):
        write_folder(read, config(), tmp_path / "made")


def test_what_is_not_accounted_for_is_refused(model, file, tmp_path):
    with pytest.raises(InputError, match=r"2 tensors are not accounted for \(first: head.bias\)"):
        read_onnx(file, config(leave=[]))
    with pytest.raises(InputError, match=r"2 tensors are not accounted for \(first: onnx::Concat_1\)"):
        read_onnx(file, config(join={}))
    with pytest.raises(InputError, match="has no tensor onnx::Add_5, which join needs"):
        read_onnx(file, config(join={POSITIONS: ["onnx::Add_5"]}))
    with pytest.raises(InputError, match="cannot be joined of"):
        read_onnx(file, config(join={POSITIONS: ["onnx::Concat_1", "head.bias"]}))
    stray = write(tmp_path / "stray.onnx", model, [("onnx::Mul_8", np.ones((2, 2), np.float32))])
    with pytest.raises(InputError, match=r"1 tensor is not accounted for \(first: onnx::Mul_8\)"):
        read_onnx(stray, config())
    sixteen = onnx.helper.make_tensor("tower.stray", onnx.TensorProto.BFLOAT16, [2], [1.0, 2.0])
    loaded = onnx.load(file)
    loaded.graph.initializer.append(sixteen)
    onnx.save(loaded, tmp_path / "sixteen.onnx")
    assert read_onnx(tmp_path / "sixteen.onnx", config())[0]["stray"].tolist() == [1, 2]
    loaded.graph.initializer[-1].raw_data, loaded.graph.initializer[-1].dims[0] = b"abc", 7
    onnx.save(loaded, tmp_path / "short.onnx")
    with pytest.raises(InputError, match=r"the tensor tower\.stray is broken"):
        read_onnx(tmp_path / "short.onnx", config())
    (tmp_path / "torn.onnx").write_bytes(file.read_bytes()[:999])
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "torn.onnx", config())
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "nowhere.onnx", config())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config": SIZES | {"num_hidden_layers": 3}}, "has 18 tensors fewer than a Dinov2Model of these sizes"),
        ({"config": SIZES | {"num_hidden_layers": 1}}, "has 18 tensors more than a Dinov2Model of these sizes"),
        ({"config": SIZES | {"patch_size": 7}}, "embeddings"),
        ({"config": SIZES | {"hidden": 16}}, r"Dinov2Model has no size 'hidden' \(did you mean 'hidden_"),
        ({"config": SIZES | {"hidden_size": "wide"}}, "no Dinov2Model can be made of these sizes .*hidden_size"),
        ({"model_class": "Dinov5Model"}, "transformers has no model Dinov5Model"),
    ],
)
def test_another_model_is_refused(file, changes, sentence):
    rules = config(**changes)
    with pytest.raises(InputError, match=sentence):
        make_module(read_onnx(file, rules)[0], rules, str(file))


def test_the_shipped_configuration():
    """Eleven of the twelve blocks of DINOv2's small one: its sizes make a model of 20 M weights, on no memory."""
    settings, where = read_settings(CONFIG, [])
    shipped = parse(OnnxConfig, settings, where)
    with torch.device("meta"):
        module = getattr(transformers, shipped.model_class)(transformers.Dinov2Config(**shipped.config))
    assert sum(parameter.numel() for parameter in module.parameters()) == 20_280_960
    assert list(shipped.join) == [POSITIONS]
