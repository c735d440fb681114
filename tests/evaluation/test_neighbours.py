"""The vote of nearest neighbours against plain loops and a case by hand, and the command that measures it."""

import json
import math
import sys

import pytest
import torch
import yaml
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from console.errors import InputError
from data.labelled import LabelledSet
from data.miniworld import ensure
from data.sources import Files
from data.transforms import centre_transform
from evaluation import zero_shot
from evaluation.neighbours import Neighbours, NeighbourSettings, probe, vote
from models.base import ImageShape
from models.tasks import ImageEmbedder
from sparsity.mask import Mask
from tests.evaluation.items_means import means


def by_loops(queries, bank, labels, k, temperature):
    """DINO's knn_classifier, an image at a time."""
    found = []
    for query in queries.tolist():
        similarities = []
        for row in bank.tolist():
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            similarities.append(dot / math.sqrt(sum(a * a for a in query)) / math.sqrt(sum(b * b for b in row)))
        votes = [0.0] * (int(labels.max()) + 1)
        for i in sorted(range(len(bank)), key=lambda i: -similarities[i])[:k]:
            votes[labels[i]] += math.exp(similarities[i] / temperature)
        found.append(votes.index(max(votes)))
    return found


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (1000, 0.07)])
def test_vote_by_loops(k, temperature):
    torch.manual_seed(0)
    bank, labels = torch.randn(60, 8).double(), torch.randint(0, 5, (60,))
    queries = 3 * torch.randn(40, 8).double()
    assert vote(queries, bank, labels, k, temperature).tolist() == by_loops(queries, bank, labels, k, temperature)


def test_vote_by_hand():
    """Two neighbours at 60 degrees outvote one at 0 only when the temperature is high: 2 exp(.5/T) > exp(1/T)."""
    bank = torch.tensor([[1.0, 0.0], [0.5, 0.75**0.5], [0.5, -(0.75**0.5)], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    query = torch.tensor([[2.0, 0.0]])
    assert vote(query, bank, labels, 3, 0.07).tolist() == [0]
    assert vote(query, bank, labels, 3, 1.0).tolist() == [1]  # T > .5 / ln 2 = .72
    assert vote(query, bank, labels, 1, 1.0).tolist() == [0]
    assert vote(-query, bank, labels, 1, 0.07).tolist() == [2]
    assert vote(query, bank, labels, 4, 1e-3).tolist() == [0], "exp(1000) must not overflow"


class Mean(ImageEmbedder):
    """The mean colour of an image."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def embed_image(self, image):
        return self.scale * image.mean(dim=(2, 3))


@pytest.fixture
def colours(tmp_path):
    """Class folders of plain pictures: class c is red, green or blue, in several shades; another folder to ask."""
    for name, shades in (("bank", (120, 160, 200, 240)), ("asked", (140, 180, 250))):
        for label, channel in (("n1", 0), ("n2", 1), ("n3", 2)):
            for shade in shades:
                pixel = [0, 0, 0]
                pixel[channel] = shade
                file = tmp_path / name / label / f"{shade}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 16), tuple(pixel)).save(file)
    return tmp_path


def settings(folder, **changes):
    sets = {name: LabelledSet(Files(folder=str(folder / name))) for name in ("bank", "asked")}
    return NeighbourSettings(**({"bank": sets["bank"], "queries": sets["asked"], "k": 3, "batch": 5} | changes))


def test_accuracy_of_class_tokens(colours):
    shape = ImageShape(8, 4, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert Neighbours(settings(colours), shape).right(Mean())["3-NN"].all()
    (colours / "asked" / "n3" / "250.png").rename(colours / "asked" / "n1" / "blue.png")
    near = Neighbours(settings(colours), shape)
    assert (len(near.bank), len(near.queries)) == (12, 9)
    right = [True] * 3 + [False] + [True] * 5  # sorted: 140, 180, 250, blue of n1
    assert near.right(Mean())["3-NN"].tolist() == right
    found = Neighbours(settings(colours, probe=0.01), shape).right(Mean())
    assert {name: of.tolist() for name, of in found.items()} == {"3-NN": right, "linear probe": right}


def test_probe_is_logistic_regression():
    """scikit-learn's, of features in units of their deviations; its penalty is of the sum over images."""
    torch.manual_seed(0)
    labels, queries = torch.arange(60) % 3, torch.randn(40, 8)
    bank = torch.randn(60, 8) + labels[:, None] * torch.tensor([1.0, 0, 0, 0, 0, 0, 0, -1])
    dead = torch.zeros(60, 1), torch.ones(40, 1)  # a channel that says nothing of the bank says nothing of a query
    scaler = StandardScaler().fit(bank)
    oracle = LogisticRegression(C=1 / (0.1 * 60), tol=1e-8, max_iter=1000).fit(scaler.transform(bank), labels)
    found = probe(torch.cat([queries, dead[1]], 1), torch.cat([bank, dead[0]], 1), labels, 0.1)
    assert found.tolist() == oracle.predict(scaler.transform(queries)).tolist()


def test_the_centre_is_cut_out():
    """224 of 256 for a side of 224: here 8 of 10 pixels of the shorter side, and nothing where all is kept."""
    shape = ImageShape(8, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    image = Image.new("RGB", (10, 10), (255, 0, 0))
    image.paste((0, 255, 0), (1, 1, 9, 9))
    cut, whole = (centre_transform(shape, centre)(image) for centre in (0.8, 1.0))
    assert cut.shape == whole.shape == (3, 8, 8)
    assert torch.equal(cut[1], torch.ones(8, 8))
    assert whole[0, 0].min() > 0.5
    assert centre_transform(shape, 1.0)(Image.new("RGB", (30, 12))).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k must be at least 1, not 0"),
        ({"temperature": 0.0}, "the temperature must be above 0"),
        ({"centre": 0.0}, "centre is a share"),
        ({"centre": 1.5}, "centre is a share"),
        ({"probe": 0.0}, "the probe's weight must be above 0"),
    ],
)
def test_bad_settings(colours, changes, message):
    with pytest.raises(InputError, match=message):
        settings(colours, **changes)


def test_classes_that_differ_are_refused(colours):
    """A folder that queries lack would shift the numbers of all later ones."""
    (colours / "asked" / "n1").rename(colours / "n1")
    with pytest.raises(InputError, match=r"classes of bank and queries differ \(3 and 2; on one side only: n1\)"):
        Neighbours(settings(colours), ImageShape(8, 4))


def test_broken_images_are_named(colours):
    (colours / "asked" / "n2" / "180.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"one cannot be read: .*180\.png \(broken"):
        Neighbours(settings(colours), ImageShape(8, 4)).right(Mean())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """configs/dino-mini/zero_shot.yaml on a few pictures."""
    root = tmp_path_factory.mktemp("world")
    ensure("flowers102", root, workers=1, show=False, scale=0.04)
    flowers = {
        "root": str(root),
        "annotations": ["data/flowers102/annots/split.csv"],
        "image_roots": {"flowers102": "data/flowers102/images"},
    }
    bank = {"files": flowers, "splits": ["train", "val"]}
    return {"neighbours": {"bank": bank, "queries": {"files": flowers, "splits": ["test"]}, "centre": 1.0}}


class TestCommand:
    """`evaluation.zero_shot` measures what the configuration names."""

    def call(self, monkeypatch, tmp_path, config, *arguments, model="dino-mini"):
        (tmp_path / "zero_shot.yaml").write_text(yaml.safe_dump(config))
        base = ["evaluation.zero_shot", "--model", model, "--weights", "random"]
        base += ["--config", str(tmp_path / "zero_shot.yaml")]
        monkeypatch.setattr(sys, "argv", [*base, *map(str, arguments)])
        zero_shot.main()

    def test_neighbours_of_a_model_without_text(self, config, tmp_path, monkeypatch, capsys):
        from models import load_model

        layers = load_model("dino-mini", weights="random").prunable_layers()
        nothing = {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}
        Mask(nothing).save(tmp_path / "none.safetensors")
        arguments = ("--masks", tmp_path / "none.safetensors", "--json", tmp_path / "out.json")
        self.call(monkeypatch, tmp_path, config, *arguments)
        dense, none = json.loads((tmp_path / "out.json").read_text())
        for row, name in ((dense, "dense"), (none, "none")):
            found = means(tmp_path / f"items_{name}.json")
            assert found == {"items": {"20-NN": pytest.approx(row["20-NN"], abs=0.0051)}}
        assert list(dense) == ["mask", "20-NN"]
        assert none["20-NN"] == pytest.approx(100 / 24, abs=0.01)  # one state for all images: one class wins
        assert 0 <= dense["20-NN"] <= 100
        assert "classes of 48 images by their 20 nearest of 72" in capsys.readouterr().out.replace("\n", " ")

    def test_any_model_that_embeds_images(self, config, tmp_path, monkeypatch):
        self.call(monkeypatch, tmp_path, config, "--json", tmp_path / "out.json", model="blip-mini")
        assert "20-NN" in json.loads((tmp_path / "out.json").read_text())[0]

    def test_bad_input(self, config, tmp_path, monkeypatch):
        with pytest.raises(InputError, match="names nothing to measure"):
            self.call(monkeypatch, tmp_path, {"images": 3})
        with pytest.raises(InputError, match="--images is the size of the gallery, but"):
            self.call(monkeypatch, tmp_path, config, "--images", 3)
        gallery = {"annotations": ["x.json"]}
        with pytest.raises(InputError, match=r"has 'gallery', which a DINO does not support"):
            self.call(monkeypatch, tmp_path, config | {"gallery": gallery})
        with pytest.raises(InputError, match="--images must be at least 1"):
            self.call(monkeypatch, tmp_path, {"gallery": gallery}, "--images", 0)
