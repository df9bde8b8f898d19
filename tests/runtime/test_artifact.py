from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ttsnn.artifact import FORMAT, read_artifact, write_artifact
from ttsnn.errors import ArtifactError


def _rewrite(path, change):
    """Copy a zip with its members changed by ``change(name, bytes)``."""
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            new = change(name, content)
            if new is not None:
                archive.writestr(name, new)


def test_round_trip(tiny, dense_path, dense_library):
    artifact = read_artifact(dense_path)
    assert artifact.library == dense_library
    assert artifact.manifest == tiny.manifest()
    for name, value in tiny.dense_params().items():
        np.testing.assert_array_equal(artifact.params[name], value)
    assert read_artifact(dense_path, contents=False).params == {}


def test_the_library_is_compressed_and_nothing_is_pickled(dense_path):
    with zipfile.ZipFile(dense_path) as archive:
        infos = {i.filename: i.compress_type for i in archive.infolist()}
    stored, deflated = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    assert infos == {"manifest.json": stored, "lib.so": deflated, "params.safetensors": stored}


def test_same_contents_give_the_same_bytes(tiny, dense_library, tmp_path):
    paths = [tmp_path / "a.ttsnn", tmp_path / "b.ttsnn"]
    for path in paths:
        size = write_artifact(path, tiny.manifest(), tiny.dense_params(), dense_library)
        assert size == path.stat().st_size
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_truncated(dense_path, keep):
    data = dense_path.read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    dense_path.write_bytes(data[:size])
    with pytest.raises(ArtifactError, match="truncated"):
        read_artifact(dense_path)


@pytest.mark.parametrize("member", ["lib.so", "params.safetensors"])
def test_changed_member(dense_path, member):
    def flip(name, content):
        return content[:-1] + bytes([content[-1] ^ 1]) if name == member else content

    _rewrite(dense_path, flip)
    with pytest.raises(ArtifactError, match=f"{member} is not what was written"):
        read_artifact(dense_path)


def test_flipped_bit_in_the_file(dense_path):
    data = bytearray(dense_path.read_bytes())
    data[len(data) // 2] ^= 4
    dense_path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged|not what was written"):
        read_artifact(dense_path)


def test_changed_manifest(dense_path):
    def rename(name, content):
        return content.replace(b'"dense"', b'"tense"') if name == "manifest.json" else content

    _rewrite(dense_path, rename)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not what was written"):
        read_artifact(dense_path)


def test_newer_format(dense_path):
    def newer(name, content):
        if name != "manifest.json":
            return content
        return json.dumps({**json.loads(content), "format": FORMAT + 1}).encode()

    _rewrite(dense_path, newer)
    with pytest.raises(ArtifactError, match="newer ttsnn"):
        read_artifact(dense_path)


@pytest.mark.parametrize("member", ["manifest.json", "lib.so", "params.safetensors"])
def test_missing_member(dense_path, member):
    _rewrite(dense_path, lambda name, content: None if name == member else content)
    with pytest.raises(ArtifactError, match=member):
        read_artifact(dense_path)


def test_not_an_artifact(tmp_path):
    path = tmp_path / "x.ttsnn"
    with pytest.raises(ArtifactError, match="no such file"):
        read_artifact(path)
    path.write_bytes(b"hello")
    with pytest.raises(ArtifactError, match="not a compiled network"):
        read_artifact(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "[]")
    with pytest.raises(ArtifactError, match="manifest"):
        read_artifact(path)
    with pytest.raises(ArtifactError):
        read_artifact(tmp_path)


def test_full_disk_leaves_nothing(tiny, dense_library, tmp_path, monkeypatch):
    path = tmp_path / "net.ttsnn"
    path.write_bytes(b"older")

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ArtifactError, match="disk is full"):
        write_artifact(path, tiny.manifest(), tiny.dense_params(), dense_library)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["net.ttsnn"]


def test_file_size_limit_in_a_process(tmp_path):
    """A real failing write: the kernel refuses to let the file grow."""
    code = """
import os, resource, sys
from ttsnn.artifact import Manifest, write_artifact
from ttsnn.errors import ArtifactError
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
m = Manifest(model="m", target={}, versions={}, inputs=(), outputs=())
try:
    write_artifact(sys.argv[1], m, {}, os.urandom(100000))
except ArtifactError as error:
    print(error)
"""
    path = tmp_path / "net.ttsnn"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "disk is full" in done.stdout
    assert os.listdir(tmp_path) == []


def test_missing_folder(tiny, tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        write_artifact(tmp_path / "no" / "net.ttsnn", tiny.manifest(params=()), {}, b"")
