"""Loaders, on small files written here in the datasets' formats."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from ttsnn.errors import DataError
from ttsnn.models import DATASETS, event_frames_from_images, load_dataset


def test_digits_are_all_there_once() -> None:
    train, test = (load_dataset("digits", split=s, normalize=False) for s in ("train", "test"))
    assert len(train) + len(test) == 1797
    raw = load_digits()
    pixels = np.concatenate([train.images.numpy(), test.images.numpy()])[:, 0] * 16
    labels = np.concatenate([train.labels.numpy(), test.labels.numpy()])

    def ordered(images, targets):
        rows = np.concatenate([images.reshape(len(images), -1), targets[:, None]], axis=1)
        return rows[np.lexsort(rows.T)]

    np.testing.assert_array_equal(ordered(pixels, labels), ordered(raw.images, raw.target))
    shares = np.bincount(test.labels) / np.bincount(raw.target)
    assert shares.min() > 0.18
    assert shares.max() < 0.22
    normal = load_dataset("digits")
    assert abs(float(normal.images.mean())) < 1e-3
    assert abs(float(normal.images.std()) - 1) < 1e-3


def test_dataset_interface() -> None:
    data = load_dataset("digits", split="test")
    sample, label = data[3]
    assert sample.shape == (1, 8, 8)
    assert sample.dtype == torch.float32
    x, y = data.batch([3, 5])
    assert torch.equal(x[0], sample)
    assert y[0] == label
    batches = list(data.batches(100))
    assert [len(y) for _, y in batches] == [100, 100, 100, 55]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.images)
    assert sum(len(y) for _, y in data.batches(32, limit=40)) == 40
    shuffled = torch.cat([y for _, y in data.batches(100, shuffle=True, seed=1)])
    assert not torch.equal(shuffled, data.labels)
    assert torch.equal(shuffled.sort().values, data.labels.sort().values)
    loaded = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))
    assert torch.equal(loaded[0], data.images[:4])
    assert load_dataset("digits", image_size=12).images.shape[-2:] == (12, 12)


def write_cifar(path, label_bytes, classes, count, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, classes, count).astype(np.uint8)
    with open(path, "wb") as file:
        for image, label in zip(pixels, labels, strict=True):
            file.write(bytes([9] * (label_bytes - 1) + [int(label)]))
            file.write(image.tobytes())
    return pixels, labels


@pytest.mark.parametrize(
    ("name", "folder", "file", "label_bytes", "classes"),
    [
        ("cifar10", "cifar-10-batches-bin", "test_batch.bin", 1, 10),
        ("cifar100", "cifar-100-binary", "test.bin", 2, 100),
    ],
)
@pytest.mark.parametrize("above", [True, False])
def test_cifar(tmp_path, name, folder, file, label_bytes, classes, above) -> None:
    place = tmp_path / folder if above else tmp_path
    place.mkdir(exist_ok=True)
    pixels, labels = write_cifar(place / file, label_bytes, classes, 7)
    data = load_dataset(name, tmp_path, "test", partial=True, normalize=False)
    assert data.spec == DATASETS[name]
    np.testing.assert_array_equal((data.images * 255).round().numpy(), pixels)
    np.testing.assert_array_equal(data.labels.numpy(), labels)
    normal = load_dataset(name, tmp_path, "test", partial=True)
    assert not torch.equal(normal.images, data.images)
    with pytest.raises(DataError, match="truncated"):
        load_dataset(name, tmp_path, "test")  # a seventh of a thousandth of the dataset


def test_cifar_train_joins_its_files(tmp_path) -> None:
    counts = []
    for i in range(1, 6):
        write_cifar(tmp_path / f"data_batch_{i}.bin", 1, 10, i, seed=i)
        counts.append(i)
    assert len(load_dataset("cifar10", tmp_path, partial=True)) == sum(counts)
    (tmp_path / "data_batch_4.bin").unlink()
    assert len(load_dataset("cifar10", tmp_path, partial=True)) == sum(counts) - 4
    with pytest.raises(DataError, match=r"data_batch_4\.bin"):
        load_dataset("cifar10", tmp_path)


def test_cifar_bad_files(tmp_path) -> None:
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
        load_dataset("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="pickles"):
        load_dataset("cifar10", tmp_path)
    path = tmp_path / "test_batch.bin"
    write_cifar(path, 1, 10, 3)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(DataError, match="9218 bytes"):
        load_dataset("cifar10", tmp_path, "test", partial=True)
    path.write_bytes(raw[:3073] + b"\x0b" + raw[3074:])
    with pytest.raises(DataError, match="record 1 has label 11"):
        load_dataset("cifar10", tmp_path, "test", partial=True)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes"):
        load_dataset("cifar10", tmp_path, "test", partial=True)


def write_events(path, events) -> None:
    """(x, y, polarity, µs) as 40-bit words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [(x << 32) | (y << 24) | (p << 23) | t for x, y, p, t in events]
    path.write_bytes(b"".join(struct.pack(">Q", w)[3:] for w in words))


def test_event_files(tmp_path) -> None:
    # 240×180 sensor; 6 frames of 100 µs from the first event to the last
    events = [
        (0, 0, 1, 1000),
        (4, 3, 1, 1099),  # the same cell of 5×3.75 pixels, the same frame
        (239, 179, 0, 1100),
        (120, 90, 1, 1599),
    ]
    for name in ("airplanes", "zebra"):
        for i in range(12):
            write_events(tmp_path / f"Caltech101/{name}/image_{i:04d}.bin", events)
    train = load_dataset("ncaltech101", tmp_path, partial=True)
    test = load_dataset("ncaltech101", tmp_path, "test", partial=True)
    assert (len(train), len(test)) == (22, 2)
    assert test.labels.tolist() == [0, 1]
    assert {p.name for p in test.files.paths} == {"image_0009.bin"}
    frames, label = test[1]
    assert label == 1
    expected = torch.zeros(6, 2, 48, 48)
    expected[0, 1, 0, 0] = 2
    expected[1, 0, 47, 47] = 1
    expected[5, 1, 24, 24] = 1
    assert torch.equal(frames, expected)
    x, _ = next(iter(DataLoader(train, batch_size=3, collate_fn=train.collate)))
    assert x.shape == (6, 3, 2, 48, 48)
    assert torch.equal(x[:, 1], expected)
    small = load_dataset(
        "ncaltech101", tmp_path / "Caltech101", "test", T=2, image_size=4, partial=True
    )
    assert small.images.shape == (2, 2, 2, 4, 4)
    assert small.images.sum() == 8
    by_count = load_dataset(
        "ncaltech101", tmp_path, "test", T=2, partial=True, split_by="count"
    ).images
    assert by_count.sum((1, 2, 3, 4)).tolist() == [4, 4]
    with pytest.raises(DataError, match="2 classes"):
        load_dataset("ncaltech101", tmp_path)


def test_clock_overflow_in_event_files(tmp_path) -> None:
    for i in range(10):
        path = tmp_path / f"cup/image_{i:04d}.bin"
        # the clock wraps between two events that carry the same time
        write_events(path, [(0, 0, 1, 5), (0, 240, 0, 0), (0, 0, 1, 5)])
    frames, _ = load_dataset("ncaltech101", tmp_path, "test", T=2, partial=True)[0]
    assert frames[:, 1, 0, 0].tolist() == [1, 1]
    assert frames.sum() == 2


def test_bad_event_files(tmp_path) -> None:
    with pytest.raises(DataError, match="Caltech101"):
        load_dataset("ncaltech101", tmp_path)
    path = tmp_path / "cup/image_0001.bin"
    write_events(path, [(1, 2, 1, 3)])
    data = load_dataset("ncaltech101", tmp_path, partial=True)
    with pytest.raises(DataError, match="split 'test'"):
        load_dataset("ncaltech101", tmp_path, "test", partial=True)
    write_events(path, [(1, 2, 1, 3), (250, 2, 1, 3)])
    with pytest.raises(DataError, match="column 250"):
        data[0]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="8 bytes"):
        data[0]
    with pytest.raises(DataError, match=r"image_0001\.bin"):
        load_dataset("ncaltech101", tmp_path, partial=True)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        data[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("mnist",), "digits"),
        (("digits", None, "validation"), "train, test"),
        (("cifar10",), "root"),
        (("digits", None, "train"), "image size 0"),
        (("cifar10", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_bad_requests(args, words) -> None:
    size = 0 if "size 0" in words else None
    with pytest.raises(DataError, match=words):
        load_dataset(*args, image_size=size)


def test_made_events_follow_the_movement() -> None:
    image = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    image[..., 3:6, 3:6] = 1.0
    blank = torch.full((1, 1, 9, 9), 0.4, dtype=torch.float64)
    frames = event_frames_from_images(torch.cat([image, blank]), 4, amplitude=1.0)
    assert frames.shape == (4, 2, 2, 9, 9)
    assert frames[:, 1].abs().sum() == 0, "nothing moves in a uniform image"
    assert torch.equal(frames, frames.floor())
    # from 0° to 90°: the view moves left and down, so the object moves right and up
    on, off = frames[0, 0, 1], frames[0, 0, 0]
    columns = torch.arange(9, dtype=torch.float64)
    assert (on.sum(0) @ columns) / on.sum() > (off.sum(0) @ columns) / off.sum()
    assert (on.sum(1) @ columns) / on.sum() < (off.sum(1) @ columns) / off.sum()
    assert event_frames_from_images(image, 1).sum() > 0
    digits = load_dataset("digits", split="test", normalize=False).images[:5]
    assert 0.01 < event_frames_from_images(digits.mean(1, keepdim=True), 6).mean() < 5
    with pytest.raises(DataError, match="normalize=False"):
        event_frames_from_images(load_dataset("digits").images[:2], 4)
    with pytest.raises(DataError, match="N, C, H, W"):
        event_frames_from_images(image[0], 4)


def test_moving_digits_are_frames_of_the_digits() -> None:
    still, moving = (load_dataset(n, split="test") for n in ("digits", "moving_digits"))
    frames = moving.images
    assert frames.shape == (6, len(still), 2, 16, 16)
    assert torch.equal(moving.labels, still.labels)
    assert torch.equal(frames, load_dataset("moving_digits", split="test").images)
    assert torch.equal(frames, frames.floor())
    assert 0.05 < (frames > 0).double().mean() < 0.5
    sample, label = moving[3]
    assert torch.equal(sample, frames[:, 3])
    assert label == int(still.labels[3])
    x, y = moving.batch([5, 3])
    assert torch.equal(x, frames[:, [5, 3]])
    assert torch.equal(y, still.labels[[5, 3]])
    assert load_dataset("moving_digits", T=2, image_size=9).batch([0])[0].shape == (2, 1, 2, 9, 9)
    # each image begins at a place of its own
    image = load_dataset("digits", normalize=False).images[:1].repeat(2, 1, 1, 1)
    a, b = event_frames_from_images(image, 4, phases=torch.tensor([0.0, np.pi / 2])).unbind(1)
    assert not torch.equal(a, b)
    # a quarter of the circle later is one frame later
    torch.testing.assert_close(a[1:], b[:-1])
