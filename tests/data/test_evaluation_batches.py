"""Evaluation batches: every sample once, for any number of processes and workers; missing images are listed at once."""

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from console.errors import InputError
from data.evaluation_batches import EvaluationData, check_files, evaluation_batches


class Numbers(Dataset):
    """Sample i is the number i."""

    def __init__(self, n, folder=None):
        self.n, self.folder = n, folder

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return i

    def file(self, i):
        return str(self.folder / f"{i}.png") if self.folder else None

    def collate(self, samples):
        return {"number": torch.tensor(samples)}


@pytest.mark.parametrize(("n", "batch_size"), [(10, 3), (9, 3), (1, 4), (7, 1), (3, 8)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_once_for_any_number_of_processes(n, batch_size, size):
    alone = [batch["number"].tolist() for batch in evaluation_batches(Numbers(n), batch_size)]
    assert [number for batch in alone for number in batch] == list(range(n))
    assert all(len(batch) == batch_size for batch in alone[:-1])
    for rank in range(size):
        own = [batch["number"].tolist() for batch in evaluation_batches(Numbers(n), batch_size, rank, size)]
        assert own == alone[rank::size]


def test_workers_and_global_draws():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    found = [batch["number"].tolist() for batch in evaluation_batches(Numbers(5), 2, num_workers=1)]
    assert found == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_impossible_batch_size():
    with pytest.raises(InputError, match="batch size must be at least 1, not 0"):
        evaluation_batches(Numbers(3), 0)


def test_missing_images_are_counted_before_the_work(tmp_path):
    for i in (0, 2):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match=r"^2 of 4 evaluation images are missing \(first: .*/1\.png\), [^\n]*$"):
        check_files(Numbers(4, tmp_path))
    check_files(Numbers(1, tmp_path))
    check_files(Numbers(4))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.effect_noise((32, 32), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name in ("broken.png", "absent.png", "half.png"):
        with pytest.raises(InputError, match=rf"needs all its images, but one cannot be read: .*/{name} \("):
            EvaluationData([str(tmp_path / name)], lambda image: image).picture(0)


@pytest.mark.parametrize(("room", "decoded"), [(256 << 20, 3), (3 * 12, 3), (3 * 12 - 1, 6)])
def test_small_data_are_decoded_once(tmp_path, monkeypatch, room, decoded):
    """Three pictures of twelve bytes, read twice, with room for all of them or not."""
    files = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (1, 1), (i, 0, 0)).save(file)
    seen = []

    def transform(image):
        seen.append(image)
        return torch.tensor(image.getpixel((0, 0)), dtype=torch.float32)

    monkeypatch.setattr("data.evaluation_batches.KEPT", room)
    data = EvaluationData(files, transform)
    passes = [[data.picture(i)[0].item() for i in range(3)] for _ in range(2)]
    assert passes == [[0, 1, 2], [0, 1, 2]]
    assert len(seen) == decoded
