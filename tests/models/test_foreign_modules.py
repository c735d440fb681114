"""What other people's modules and files bring along: fused encoders, tied heads, odd classifiers, wrong weights."""

import json
import os
import shutil

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from configs.schema import CONFIGS
from console.errors import InputError
from data.readers import make_reader
from data.sources import Files
from models import file_name, load_model
from models.conformance import CHECKS, check_model
from models.library import hf_tokenizer
from models.library.hf_tokenizer import HFTokenizer
from models.wrap import wrap
from pruners import prune
from pruners.preparing import weights_identity
from pruners.session import Session
from tests.data.configured import configured
from tests.models.test_any_module import HUGGING_FACE, SMALL_VIT, hand_example, hand_wrapped

OPTIONS = {"forward": lambda module, batch: module(batch["text_ids"], batch["text_atts"]), "example": hand_example}


class Stacked(nn.Module):
    """A text classifier around torch's own encoder, whose fused path calls no layer and packs padding away."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(50, 16)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, 0.5, batch_first=True), 2)

    def forward(self, text_ids, text_atts):
        return self.blocks(self.words(text_ids), src_key_padding_mask=text_atts == 0)


def stacked():
    return wrap(
        Stacked(),
        loss=lambda module, batch: OPTIONS["forward"](module, batch)[:, 0].square().sum(),
        tokens=lambda name, batch: batch["text_atts"],
        **OPTIONS,
    )


class TestTorchsEncoder:
    def test_conforms_in_training_mode_with_dropout(self):
        model = stacked()
        assert check_model(model, "stacked")
        assert model.training
        assert torch.backends.mha.get_fastpath_enabled()

    def test_statistics_of_its_layers(self):
        """Norms of the first linear layer's input, against the encoder's parts called by hand."""
        model, batch = stacked(), hand_example(5)
        session = Session(model, [batch], "multiflow")
        session.masks((0.5,))
        block = model.module.blocks.layers[0].eval()
        x = model.module.words(batch["text_ids"])
        mask = batch["text_atts"] == 0
        x = block.norm1(x + block.self_attn(x, x, x, key_padding_mask=mask)[0])
        expected = (x.square() * ~mask[..., None]).sum(dim=(0, 1)).div(5).sqrt()
        torch.testing.assert_close(session.pruner.norms.norms("blocks.layers.0.linear1.weight"), expected)


class TestWrap:
    def test_heads_tied_to_embeddings_stay(self):
        """An embedding is never pruned, under no name."""
        module = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False))
        module[2].weight = module[0].weight
        model = wrap(module, forward=lambda module, batch: module(batch["text_ids"]))
        assert list(model.prunable_layers()) == ["1.weight"]
        assert list(map(str, model.skipped)) == ["2.weight: its weight is an embedding's (36 weights)"]

    def test_state_dict_round_trip(self):
        model = hand_wrapped()
        state = {name: torch.full_like(tensor, 2) for name, tensor in model.state_dict().items()}
        model.load_state_dict(state)
        assert all(bool((tensor == 2).all()) for tensor in model.module.state_dict().values())


class TestConformanceSaysIt:
    def test_unforeseen_errors_are_cut_short(self, capsys):
        def explode(module, batch):
            raise NotImplementedError("a reason that matters\n" + "a page of what does not\n" * 500)

        assert not check_model(hand_wrapped(forward=explode), "exploding")
        printed = " ".join(capsys.readouterr().out.split())
        assert "a reason that" in printed
        assert "what does not" not in printed

    def test_a_failed_model_is_not_checked_further(self, capsys):
        assert not check_model(nn.Linear(2, 2), "a layer")
        printed = " ".join(capsys.readouterr().out.split())
        assert "lacks the questions of" in printed
        assert "padding" not in printed

    def test_a_loss_cut_off_from_the_layers(self):
        model = hand_wrapped(loss=lambda module, batch: OPTIONS["forward"](module, batch).detach().sum())
        with pytest.raises(Exception, match="the loss has no gradient at all"):
            CHECKS["losses and gradients"](model)

    def test_text_without_an_attention_mask(self):
        model = hand_wrapped(example=lambda size: {"text_ids": hand_example(size)["text_ids"]})
        assert CHECKS["padding"](model) == "no side has padded text"


def small_timm(weights, **settings):
    return load_model("timm:vit_small_patch16_224", config=SMALL_VIT | settings, weights=weights)


class TestTimm:
    @pytest.mark.parametrize("name", ["tiny_vit_5m_224", "crossvit_tiny_240", "pvt_v2_b0", "mixer_s32_224"])
    def test_other_families_tell_their_image_size(self, name):
        with torch.device("meta"):
            expected = timm.create_model(name).pretrained_cfg["input_size"][1]
        assert load_model(f"timm:{name}", weights="random").image_shape.image_size == expected

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("beit_base_patch16_224", {k: v for k, v in SMALL_VIT.items() if k != "patch_size"}),
            ("eva02_tiny_patch14_224", SMALL_VIT),
            (
                "swinv2_tiny_window8_256",
                {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "num_classes": 5},
            ),
        ],
    )
    def test_attention_with_a_bias_of_its_own(self, name, settings):
        """Its qkv layer is called, and the numbers are those of timm's way."""
        model = load_model(f"timm:{name}", config=settings, weights="random")
        assert check_model(model, name)
        stock = timm.create_model(name, **settings).eval()
        stock.load_state_dict(model.state_dict())
        image = model.example(2)["general"]["image"]
        torch.testing.assert_close(model.module(image), stock(image))

    def test_random_weights_are_the_same_each_time(self):
        first, second = small_timm("random").state_dict(), small_timm("random").state_dict()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())

    def test_files_of_other_layouts(self, tmp_path):
        """Weights under `state_dict`, with DistributedDataParallel's prefix, at another image size."""
        state = small_timm("random", img_size=48).state_dict()
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
        model = small_timm(tmp_path / "a.pth")
        name = "blocks.1.mlp.fc2.weight"
        assert torch.equal(model.state_dict()[name], state[name])
        assert list(model.load_report.resized) == ["pos_embed"]

    def test_bad_files(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
        torch.save({"weight": Command()}, tmp_path / "code.pth")
        (tmp_path / "broken.safetensors").write_bytes(b"hello")
        for name, message in (("other", "does not fit VisionTransformer"), ("code", "is refused")):
            with pytest.raises(InputError, match=message):
                small_timm(tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match="is corrupt"):
            small_timm(tmp_path / "broken.safetensors")
        assert not (tmp_path / "pwned").exists()

    def test_without_a_classifier(self):
        model = small_timm("random", num_classes=0)
        batch = model.example(2)
        assert prune(model, [batch], "multiflow", (0.5,))
        with pytest.raises(InputError, match="has no classifier, so there is no loss"):
            prune(model, [batch], "snip", (0.5,))


class Command:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture
def clip_folder(tmp_path):
    """A small CLIP on disk, without a tokenizer."""
    torch.manual_seed(0)
    HUGGING_FACE["CLIPModel"]().save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def change_config(folder, changes):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | changes))


def letter_tokenizer(folder):
    """A tokenizer of single letters in CLIP's format."""
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


class TestHuggingFace:
    def test_identity_of_the_weights(self, clip_folder):
        """A folder has no bytes to hash: its tensors have. Random weights say so."""
        identity = weights_identity(load_model(f"hf:{clip_folder}"))
        assert identity["file"] == str(clip_folder)
        assert len(identity["sha256"]) == 64
        assert weights_identity(load_model(f"hf:{clip_folder}", weights="random")) == {"file": "random", "sha256": ""}
        state = load_file(clip_folder / "model.safetensors")
        state["logit_scale"] += 1
        save_file(state, clip_folder / "model.safetensors", {"format": "pt"})
        assert weights_identity(load_model(f"hf:{clip_folder}"))["sha256"] != identity["sha256"]

    def test_weights_of_another_model(self, clip_folder, tmp_path):
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path / "vit")
        with pytest.raises(InputError, match=r"do not fit CLIPModel: \d+ of its 78 tensors are missing"):
            load_model(f"hf:{clip_folder}", weights=tmp_path / "vit")

    def test_heads_that_the_weights_lack_are_reported(self, tmp_path):
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        kept = {name: tensor for name, tensor in state.items() if "classifier" not in name}
        save_file(kept | {"extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
        report = load_model(f"hf:{tmp_path}").load_report
        assert report.fresh == ["classifier.bias", "classifier.weight"]
        assert report.dropped == ["extra.weight"]

    def test_bad_files(self, clip_folder, monkeypatch):
        monkeypatch.chdir(clip_folder)
        (clip_folder / "model.safetensors").write_bytes(b"hello")
        with pytest.raises(InputError, match="is corrupt or not a tensor file"):
            load_model(f"hf:{clip_folder}")
        (clip_folder / "model.safetensors").unlink()
        torch.save({"logit_scale": Command()}, clip_folder / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"an object of .*mkdir, .* is refused"):
            load_model(f"hf:{clip_folder}")
        assert not (clip_folder / "pwned").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_size": "wide"}, "cannot be loaded .*hidden_size"),
            ({"num_attention_heads": 5}, "no BertModel can be made of its config.json .*heads"),
        ],
    )
    def test_bad_sizes(self, changes, message, tmp_path):
        HUGGING_FACE["BertModel"]().save_pretrained(tmp_path)
        change_config(tmp_path, changes)
        for weights in (None, "random"):
            with pytest.raises(InputError, match=message):
                load_model(f"hf:{tmp_path}", weights=weights)

    def test_a_classifier_of_own_code_is_made_by_the_library(self, tmp_path):
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path)
        change_config(tmp_path, {"architectures": ["MyViTForImageClassification"]})
        assert type(load_model(f"hf:{tmp_path}").module).__name__ == "ViTForImageClassification"

    def test_a_broken_preprocessor_is_not_absent(self, tmp_path):
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4')
        with pytest.raises(InputError, match=r"preprocessor_config\.json cannot be read .*: repair or remove it"):
            load_model(f"hf:{tmp_path}")

    def test_settings_that_the_config_does_not_know(self, clip_folder):
        with pytest.raises(InputError, match=r"has no 'projection_dimm' \(did you mean 'projection_dim'\?\)"):
            load_model(f"hf:{clip_folder}", config={"projection_dimm": 8}, weights="random")

    def test_the_preprocessors_normalisation(self, tmp_path):
        HUGGING_FACE["ViTForImageClassification"]().save_pretrained(tmp_path)
        assert load_model(f"hf:{tmp_path}").image_shape.mean == (0.5, 0.5, 0.5)
        about = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
        shape = load_model(f"hf:{tmp_path}").image_shape
        assert (shape.mean, shape.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def test_no_tokenizer_is_none(self, clip_folder, tmp_path):
        """transformers makes one that knows no word; texts would all look alike."""
        model = load_model(f"hf:{clip_folder}")
        assert model.tokenizer is None
        config = configured(name="pairs", files=Files(annotations=["pairs.json"]))
        with pytest.raises(InputError, match="'pairs' needs a tokenizer, but the model has none"):
            make_reader(config, model.image_shape, model.tokenizer)

    def test_texts_are_no_longer_than_the_model_reads(self, clip_folder):
        letter_tokenizer(clip_folder)
        tokenizer = load_model(f"hf:{clip_folder}").tokenizer
        rows = [tokenizer.encode(text, False, 64) for text in ("a b", "a long text of many letters")]
        assert rows[0] != rows[1][: len(rows[0])]
        ids, atts = tokenizer.pad_batch(rows, 64)
        assert ids.shape == atts.shape == (2, 16)
        assert atts.sum(dim=1).tolist() == [4, 16]
        assert tokenizer.pad_batch(rows[:1], 64)[0].shape == (1, 4), "padding costs a model's time"

    def test_a_tokenizer_of_its_own(self, tmp_path, capsys):
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle"]
        (tmp_path / "vocab.txt").write_text("\n".join(words))
        transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "saved")
        tokenizer = HFTokenizer.load(str(tmp_path / "saved"), 8, 7)
        assert tokenizer.encode("Red circle", False, None) == [2, 5, 6, 3]
        with pytest.raises(InputError, match="has 7 tokens, and the model has 6 embeddings: put the tokenizer"):
            HFTokenizer.load(str(tmp_path / "saved"), 8, 6)
        assert HFTokenizer.load(str(tmp_path / "saved"), 8, 15) is not None
        assert "has 7 tokens, and the model has 15 embeddings" in " ".join(capsys.readouterr().err.split())
        shutil.rmtree(tmp_path / "saved")
        assert HFTokenizer.load(str(tmp_path / "saved"), 8, 7) is None

    def test_a_damaged_file_is_not_a_missing_one(self, clip_folder):
        letter_tokenizer(clip_folder)
        (clip_folder / "tokenizer.json").write_text("{oops")
        with pytest.raises(InputError, match=r"cannot be read .*: repair or remove its JSON files"):
            HFTokenizer.load(str(clip_folder), 16, 99)

    def test_a_tokenizer_that_needs_a_package(self, monkeypatch, capsys):
        """SigLIP's needs sentencepiece."""

        def lacking(reference):
            raise ImportError("it requires [sentencepiece]")

        monkeypatch.setattr(hf_tokenizer.AutoTokenizer, "from_pretrained", lacking)
        assert HFTokenizer.load("folder", 8, 7) is None
        said = " ".join(capsys.readouterr().err.split())
        assert "the tokenizer of folder cannot be made (it requires [sentencepiece])" in said


def test_the_command_prunes_a_folder(clip_folder, tmp_path, monkeypatch, capsys):
    """prune.py on a local CLIP with its tokenizer, calibrated on pictures of the mini world."""
    import prune as command
    from console.interrupt import interrupt
    from data.miniworld import ensure
    from sparsity.mask import Mask

    letter_tokenizer(clip_folder)
    root = ensure("calibration", tmp_path / "world", workers=1, show=False, scale=0.01)
    text = (CONFIGS / "hf/prune.yaml").read_text().replace("files:", f"files:\n      root: {root}")
    (tmp_path / "prune.yaml").write_text(text)
    arguments = ["--config", str(tmp_path / "prune.yaml"), "--output_dir", str(tmp_path / "out"), "-s", "75"]
    arguments += ["--num_workers", "0", "--num_batches", "2", "--batch_size", "4"]
    monkeypatch.setattr("sys.argv", ["prune.py", "--model", f"hf:{clip_folder}", *arguments])
    monkeypatch.setattr(interrupt, "listen", lambda: None)  # signals are pytest's
    command.main()
    (path,) = (tmp_path / "out" / "multiflow").glob("hf-clip_multiflow_75_seed42.safetensors")
    mask = Mask.load(path)
    assert mask.sparsity_by_modality() == pytest.approx({"text": 0.75, "vision": 0.75})
    assert mask.source["weights"]["file"] == str(clip_folder)
    assert "78 tensors loaded" in " ".join(capsys.readouterr().err.split())


def test_file_names_have_the_last_part_of_a_folder(clip_folder, tmp_path, monkeypatch, capsys):
    """Two folders may share it: the second run says what it replaces, and the masks keep the whole path."""
    import prune as command
    from console.interrupt import interrupt
    from sparsity.mask import Mask

    monkeypatch.setattr(interrupt, "listen", lambda: None)
    other = tmp_path / "other" / "clip"
    shutil.copytree(clip_folder, other)
    for number, folder in enumerate((clip_folder, clip_folder, other)):
        arguments = ["--pruner", "omp", "-s", "75", "--output_dir", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["prune.py", "--model", f"hf:{folder}", *arguments])
        command.main()
        assert (
            Mask.load(tmp_path / "out" / "omp" / "hf-clip_omp_75_seed42.safetensors").source["model"] == f"hf:{folder}"
        )
        told = "".join(capsys.readouterr().err.split())
        assert (f"othersettings(model:hf:{clip_folder},nowhf:{other})" in told) == (number == 2)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("xvlm-mini", "xvlm-mini"),
        ("timm:vit_small_patch16_224", "timm-vit_small_patch16_224"),
        ("hf:openai/clip-vit-base-patch32", "hf-openai--clip-vit-base-patch32"),
        ("hf:/a/long/path/clip", "hf-clip"),
        ("hf:/a/long/path/clip/", "hf-clip"),
        ("hf:../clip", "hf-clip"),
        ("hf:a/b/clip", "hf-clip"),
    ],
)
def test_names_of_models_in_files(model, name):
    assert file_name(model) == name
