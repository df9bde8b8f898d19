"""Architecture files: what ships, and what is refused with which words."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from ttsnn.accel_target.arch import Architecture, architectures, load_architecture
from ttsnn.errors import TargetError

SATA = resources.files("ttsnn.accel_target").joinpath("architectures/sata.toml").read_text("utf-8")


def test_sata_is_the_published_array() -> None:
    sata = load_architecture("sata")
    (array,) = sata.clusters
    assert (array.rows, array.cols, sata.clock_mhz) == (16, 8, 400.0)
    assert (array.weight_buffer, array.input_buffer, array.output_buffer) == (
        144 * 1024,
        32 * 1024,
        32 * 1024,
    )
    pad = array.scratchpad
    assert (pad.weight, pad.input, pad.output) == (9, 9, 8)
    words = sata.words
    assert (words.weight, words.activation, words.accumulator, words.spike) == (8, 8, 16, 1)
    assert sata.links == ()


def test_ttsnn4_has_as_much_of_everything_as_sata() -> None:
    sata, four = load_architecture("sata"), load_architecture("ttsnn4")
    assert four.pes == sata.pes == 128
    assert four.buffer_bytes == sata.buffer_bytes == 208 * 1024
    for name in ("clock_mhz", "words", "vector", "lif", "gradient", "optimizer", "dram"):
        assert getattr(four, name) == getattr(sata, name), name
    assert [(k.source, k.destination) for k in four.links] == [
        *map(tuple, ["ab", "ba", "ac", "ca", "bc", "cb", "bd", "db", "cd", "dc"]),
    ]  # fmt: skip
    assert four.find_link("a", "c") is four.links[2]
    assert four.find_link("a", "d") is None


@pytest.mark.parametrize("name", architectures())
def test_json_round_trip(name: str) -> None:
    arch = load_architecture(name)
    assert Architecture.from_json(arch.to_json()) == arch
    assert load_architecture(arch) is arch


def test_the_fingerprint_is_of_the_machine_alone() -> None:
    sata = load_architecture("sata")
    # Programs carry it, so it may not depend on the Python or the order of the keys.
    text = json.dumps(
        sata.to_json() | {"name": "", "description": ""}, sort_keys=True, separators=(",", ":")
    )
    assert sata.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert dataclasses.replace(sata, name="x", description="y").fingerprint == sata.fingerprint
    wider = dataclasses.replace(sata, dram=dataclasses.replace(sata.dram, latency=41))
    assert wider.fingerprint != sata.fingerprint
    reordered = dict(reversed(sata.to_json().items()))
    assert Architecture.from_json(reordered).fingerprint == sata.fingerprint


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SATA.replace("rows = 16", "rows = 4"))
    assert load_architecture(path).pes == 32
    assert load_architecture(str(path)).fingerprint != load_architecture("sata").fingerprint


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rows = 16", "rows = 0", "clusters[0].rows is 0; it must be at least 1"),
        ("rows = 16", "rows = 1.5", "clusters[0].rows must be a whole number, got 1.5"),
        ("rows = 16", "rows = true", "clusters[0].rows must be a whole number, got True"),
        ("rows = 16", "rowz = 16", "clusters[0].rowz is no known key; did you mean 'rows'?"),
        ("rows = 16\n", "", "clusters[0].rows is missing; add it"),
        ('"os"', '"is"', "clusters[0].dataflow has no setting 'is'; choose os or ws"),
        ("clock_mhz = 400", "clock_mhz = nan", "clock_mhz must be a number, got nan"),
        ("clock_mhz = 400", 'clock_mhz = "fast"', "clock_mhz must be a number, got 'fast'"),
        ("bytes_per_cycle = 16", "bytes_per_cycle = -1", "dram.bytes_per_cycle is -1.0; it must"),
        ("accumulator = 16", "accumulator = 4", "words.accumulator of 4 bits is narrower"),
        ("[optimizer]", "[dram2]\n[optimizer]", "dram2 is no known key; did you mean 'dram'?"),
        ("[lif]\nlanes = 16", "lif = 16", "must be a table of keys"),
        ("[[clusters]]", "[clusters]", "clusters must be a list"),
        ("[lif]", '[[links]]\nsource = "array"\ndestination = "b"\ncapacity = 8\nwidth = 8\n[lif]',
         "links[0].destination 'b' is no cluster; there are array"),
        ("[lif]", '[[links]]\nsource="array"\ndestination="array"\ncapacity = 8\nwidth = 8\n[lif]',
         "links[0] joins 'array' to itself"),
        ("[words]", "[words", "is no valid TOML"),
    ],
)  # fmt: skip
def test_what_is_impossible_is_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    assert old in SATA
    text = SATA.replace(old, new, 1)
    if "lif = 16" in new:  # a bare key belongs to the table above it: put it first
        text = "lif = 16\n" + SATA.replace(old, "", 1)
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(TargetError) as error:
        load_architecture(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)


def test_names_and_links_are_unique() -> None:
    four = load_architecture("ttsnn4")
    data = four.to_json()
    data["clusters"][1]["name"] = "a"
    with pytest.raises(TargetError, match=r"clusters\[1\]\.name 'a' is taken"):
        Architecture.from_json(data)
    data = four.to_json()
    data["links"].append(dict(data["links"][0]))
    with pytest.raises(TargetError, match=r"links\[10\] a to b is there twice"):
        Architecture.from_json(data)
    with pytest.raises(TargetError, match="clusters is empty"):
        Architecture.from_json(four.to_json() | {"clusters": [], "links": []})


def test_unknown_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="unknown architecture 'stata', did you mean sata"):
        load_architecture("stata")
    with pytest.raises(TargetError, match="No such file"):
        load_architecture(tmp_path / "none.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TargetError, match="Is a directory"):
        load_architecture(tmp_path / "folder.toml")


def test_the_files_have_no_defaults_that_hide() -> None:
    """Every key of the dataclass but the optional ones is written down in the file."""
    data = tomllib.loads(SATA)
    assert set(data) == {f.name for f in dataclasses.fields(Architecture)} - {"links"}
