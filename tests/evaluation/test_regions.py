"""Mean IoU of predicted boxes against plain arithmetic."""

import pytest
import torch
from torch import nn

from data.batches import Loaded
from evaluation.regions import region_ious
from models.tasks import Locator


class Finder(Locator):
    """Answers with prepared boxes, batch by batch."""

    def __init__(self, answers):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.answers = iter(answers)

    def boxes(self, batch):
        return next(self.answers)


def batch(boxes, is_image, views=None, used=()):
    n = len(boxes)
    views = torch.arange(n) if views is None else torch.tensor(views)
    words = torch.zeros(n, 4, dtype=torch.long)
    fields = {"image": torch.zeros(1 + max(views), 1), "idx_to_group_img": views, "text_ids": words, "text_atts": words}
    return Loaded(fields | {"target_bbox": boxes, "is_image": torch.tensor(is_image)}, list(used), [])


def mean_iou(model, side, batches):
    return 100 * region_ious(model, side, batches)[0].mean().item()


def iou_by_hand(a, b):
    """Boxes as (cx, cy, w, h)."""
    sides = []
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        sides.append(max(0.0, high - low))
    common = sides[0] * sides[1]
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def test_a_case_by_hand():
    """Half covered: 1/3. A hit: 1. A miss: 0. The whole image at the end does not count."""
    true = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]])
    said = torch.tensor([[0.7, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    side = [batch(true, [0, 0, 0, 1])]
    assert mean_iou(Finder([said]), side, 1) == pytest.approx(100 * (1 / 3 + 1 + 0) / 3, abs=1e-4)


def test_of_which_picture_each_region_is():
    """Records 9, 4 and 9 again in the next batch; then a batch in which one record left no view."""
    boxes = torch.full((4, 4), 0.5)
    side = [
        batch(boxes, [0, 0, 1, 0], [0, 1, 1, 0], [9, 4]),
        batch(boxes, [0, 0, 0, 0], [1, 1, 0, 1], [7, 9]),
        batch(boxes, [0, 0, 0, 0], [0, 0, 1, 1], [7, 9, 4]),
    ]
    assert region_ious(Finder([boxes] * 3), side, 3)[1] == [0, 1, 0, 0, 0, 2, 0, 3, 3, 4, 4]


def test_replaced_records_are_named(capsys):
    boxes = torch.full((2, 4), 0.5)
    side = [Loaded(batch(boxes, [0, 0]).batch, [3, 4], [f"cannot read {name}.png"]) for name in (7, 8)]
    region_ious(Finder([boxes] * 2), side, 2)
    assert "of 2 records that cannot be used, such as cannot read 7.png" in " ".join(capsys.readouterr().err.split())


def test_random_boxes_against_loops():
    """Batches count by their regions, not each alike; batches beyond the asked ones are not read."""
    torch.manual_seed(0)
    side, answers, expected = [], [], []
    for n in (3, 8, 5):
        true, said = (torch.cat([torch.rand(n, 2), 0.3 + 0.5 * torch.rand(n, 2)], dim=1) for _ in range(2))
        is_image = (torch.rand(n) < 0.3).long()
        side.append(batch(true, is_image.tolist()))
        answers.append(said)
        expected += [
            iou_by_hand(*rows) for *rows, w in zip(said.tolist(), true.tolist(), is_image, strict=True) if not w
        ]
    assert mean_iou(Finder(answers), [*side, None], 3) == pytest.approx(100 * sum(expected) / len(expected), rel=1e-5)


def test_a_real_model(xvlm, xvlm_batches):
    """The reference X-VLM: the same boxes, asked for one sample at a time."""
    region = xvlm_batches[0]["region"]
    found = mean_iou(xvlm, [Loaded(region, [], [])], 1)
    ious = []
    with torch.no_grad():
        full = xvlm.vision_encoder(region["image"])
        for i, group in enumerate(region["idx_to_group_img"].tolist()):
            if region["is_image"][i] == 0:
                atts = region["text_atts"][i : i + 1]
                text = xvlm.text_states(region["text_ids"][i : i + 1], atts)
                box = xvlm.predict_boxes(text, atts, full[group : group + 1])[0]
                ious.append(iou_by_hand(box.tolist(), region["target_bbox"][i].tolist()))
    assert 0 < len(ious) < len(region["is_image"])
    assert found == pytest.approx(100 * sum(ious) / len(ious), rel=1e-4)
