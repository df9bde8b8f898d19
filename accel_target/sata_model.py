"""The accounting behind TT-SNN's published energies, as closed forms.

TT-SNN (Lee et al., DATE 2024) took its energies from its authors' simulator SATA_Sim. Two models
of it are rebuilt here from its formulas and published results, so that those figures can be
checked and compared with what :mod:`ttsnn.accel_target` simulates; nothing else uses them.

- :func:`inference_energy`: its inference model. Cycles and accesses are those of SCALE-Sim for
  one timestep. It has properties that our simulator does not share: DRAM and buffer traffic are
  charged for one timestep while cycles run over all T; every access of a byte costs a whole
  access of 32 bytes; convolutions have no padding in cycles and traffic but padding 1 in the
  arithmetic, 1×1 ones too; every sub-convolution has neurons; one sparsity holds for all.
- :func:`training_energy`: SATA's training model for a single layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from ttsnn.accel_target.tech import load_technology

__all__ = [
    "Conv",
    "InferenceEnergy",
    "chain",
    "dense_resnet18",
    "inference_energy",
    "training_energy",
    "tt_resnet",
]

ROWS, COLS = 16, 8
HALF_BUFFER = 16384  # half of the input buffer: it is filled while the other half is read
CLOCK_MHZ = 400.0
# nJ an element of one byte
DRAM = 0.468762
SRAM_INPUT, SRAM_OUTPUT, SRAM_WEIGHT = 0.0110295, 0.012772, 0.0286315
SRAM_LEAKAGE = 2 * 6.25862 + 24.9086  # mW
# mW of the parts of a PE: clock-gated (per operation), ungated (per PE and cycle), leakage
GATED = {"mac": 0.02511, "scratchpad": 0.11241, "lif": 0.01886}
UNGATED = {"mac": 0.01924, "scratchpad": 0.21233, "lif": 0.05625}
LEAKAGE = {"mac": 0.000062, "scratchpad": 0.000523, "lif": 0.000084}


@dataclass(frozen=True)
class Conv:
    """A convolution of a workload file; a linear layer is a 1×1 on one position.

    Attributes:
        size: height and width of the input.
        kernel: height, width.
        shares: parts of its DRAM reads and writes of activations that are charged (1, 1), and
            elements read in addition, for the variants that edit them.
    """

    size: int
    kernel: tuple[int, int]
    cin: int
    cout: int
    stride: int = 1
    linear: bool = False
    shares: tuple[float, float] = (1.0, 1.0)
    extra_reads: int = 0

    @property
    def positions(self) -> int:
        """Output positions without padding; SCALE-Sim rounds up."""
        kh, kw = self.kernel
        return (ceil((self.size - kh) / self.stride) + 1) * (
            ceil((self.size - kw) / self.stride) + 1
        )

    @property
    def padded_positions(self) -> int:
        """Output positions with padding 1, whatever the kernel; of a linear layer 1."""
        if self.linear:
            return 1
        kh, kw = self.kernel
        size, stride = self.size + 2, self.stride
        return ((size - kh) // stride + 1) * ((size - kw) // stride + 1)

    @property
    def taps(self) -> int:
        """Length of the reduction."""
        return self.cin * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class InferenceEnergy:
    """Energy of one sample, mJ, and the counts that it comes from."""

    compute: float
    sram: float
    dram: float
    cycles: int
    macs: int
    dram_elements: int

    @property
    def total(self) -> float:
        """All of it, mJ."""
        return self.compute + self.sram + self.dram


def _input_reads(conv: Conv) -> int:
    """Elements read from DRAM: the input once for each fold of the columns, if it does not fit.

    Each refill of the half buffer reads the rows again that the next window shares with it.
    """
    elements = conv.size**2 * conv.cin
    if elements < HALF_BUFFER:
        return elements
    halo = (conv.kernel[0] - 1) * conv.size * conv.cin * (elements / HALF_BUFFER - 0.5)
    return ceil(conv.cout / COLS) * (elements + int(halo))


def inference_energy(
    layers: Iterable[Conv], timesteps: int, sparsity: float = 0.9, *, every_step: bool = False
) -> InferenceEnergy:
    """Energy of a forward pass of one sample.

    Args:
        layers: the workload.
        timesteps: T.
        sparsity: share of zeros that every layer's input is taken to have.
        every_step: charge the traffic of activations for all timesteps, which the published
            accounting does for one.
    """
    steps = timesteps if every_step else 1
    cycles = lif = dram = 0
    macs = sram = 0.0
    for conv in layers:
        m, k, n = conv.positions, conv.taps, conv.cout
        folds = ceil(m / ROWS) * ceil(n / COLS)
        stationary = ceil(k / ROWS) * ceil(n / COLS)
        cycles += (folds * (k + ROWS + COLS - 2) - 1) * timesteps  # output stationary
        cycles += (stationary - 1) * (m + 2 * ROWS + COLS - 2) + ROWS - 1  # loading weights
        lif += n * conv.padded_positions * timesteps
        macs += n * conv.padded_positions * k * timesteps * (1 - sparsity)
        sram += SRAM_INPUT * m * k * ceil(n / COLS) * steps + SRAM_WEIGHT * k * n
        sram += SRAM_OUTPUT * (m * n + folds * (ROWS + COLS)) * steps
        reads, writes = conv.shares
        moved = int(reads * _input_reads(conv)) + conv.extra_reads + int(writes * m * n)
        dram += moved * steps + k * n
    operations = {"mac": macs, "scratchpad": macs, "lif": lif}
    period = 1e-3 / CLOCK_MHZ  # mW · µs = nJ: mJ of a mW over one cycle, times 1e6
    pes = ROWS * COLS
    compute = sum(
        GATED[part] * operations[part] + (UNGATED[part] + LEAKAGE[part]) * cycles * pes
        for part in GATED
    )
    return InferenceEnergy(
        compute=compute * period * 1e-3,
        sram=sram * 1e-6 + SRAM_LEAKAGE * cycles * period * 1e-3,
        dram=DRAM * dram * 1e-6,
        cycles=cycles,
        macs=int(macs),
        dram_elements=dram,
    )


def dense_resnet18() -> list[Conv]:
    """The published workload of the dense network on CIFAR.

    Two layers have a stride 2 on an input that is already of the smaller size: a slip of the
    file that makes the dense network cheaper.
    """
    layers = [Conv(32, (3, 3), 3, 64)]
    channels = 64
    for size, width in ((32, 64), (16, 128), (8, 256), (4, 512)):
        for i in range(4):
            stride = 2 if (width, i) in ((128, 2), (512, 0)) else 1
            layers.append(Conv(size, (3, 3), channels, width, stride))
            channels = width
    return [*layers, Conv(1, (1, 1), 512, 10, linear=True)]


def chain(size: int, cin: int, rank: int, cout: int, variant: str = "stt") -> list[Conv]:
    """The sub-convolutions of one TT convolution, at its output resolution.

    ``ptt`` reads the second branch's addend from DRAM; ``htt`` halves the traffic of the spatial
    cores (nothing else: cycles and arithmetic stay those of stt, as in the published results);
    ``no_fourth`` is ptt's "new architecture": stt without the fourth core.
    """
    first = Conv(size, (1, 1), cin, rank)
    second, third = Conv(size, (3, 1), rank, rank), Conv(size, (1, 3), rank, rank)
    last = Conv(size, (1, 1), rank, cout)
    if variant == "ptt":
        third = Conv(size, (1, 3), rank, rank, extra_reads=second.positions * rank)
    elif variant == "htt":
        second = Conv(size, (3, 1), rank, rank, shares=(0.5, 0.5))
        third = Conv(size, (1, 3), rank, rank, shares=(0.5, 0.5))
    elif variant == "no_fourth":
        return [first, second, third]
    return [first, second, third, last]


def tt_resnet(
    blocks: Sequence[int],
    ranks: Sequence[int],
    *,
    size: int,
    in_channels: int,
    classes: int,
    variant: str = "stt",
) -> list[Conv]:
    """The published workload of a TT ResNet: stem, two chains a block, classifier; no shortcuts.

    Args:
        blocks: blocks of the four stages, (2, 2, 2, 2) or (3, 4, 6, 3).
        ranks: one a chain.
        size: of the input image; halved from stage to stage.
        variant: see :func:`chain`.
    """
    layers = [Conv(size, (3, 3), in_channels, 64)]
    left, channels = iter(ranks), 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for _ in range(2 * count):
            layers += chain(size >> stage, channels, next(left), width, variant)
            channels = width
    return [*layers, Conv(1, (1, 1), 512, classes, linear=True)]


def training_energy(
    cin: int,
    cout: int,
    kernel: tuple[int, int],
    size: int,
    timesteps: int,
    *,
    bits: int = 8,
    spike_sparsity: float = 0.9,
    gradient_sparsity: float = 0.7,
) -> dict[str, float]:
    """SATA's training model: energy of one convolution of one sample, µJ, by stage and part.

    Stages: ``fwd``, ``bwd``, ``wup`` (weight update); memories: ``dram``, ``glb`` (global buffers),
    ``spad`` (scratchpads); ``pgu`` is the gradient of the neurons. The convolution keeps its size.

    Args:
        bits: of the forward's numbers; its energies are those of 16 bits times bits / 16.
        spike_sparsity, gradient_sparsity: zeros among spikes and membrane gradients.
    """
    tech = load_technology("sata16")
    weights, positions = cin * cout * kernel[0] * kernel[1], size**2
    macs = weights * positions * timesteps
    neurons = outputs = cout * positions * timesteps
    spikes = cin * positions * timesteps / bits  # packed into words
    narrow = bits / 16  # the forward's operations and words
    words = {
        "fwd": (
            weights + outputs + spikes,
            2 * (weights + outputs + spikes),
            2 * (weights + spikes),
        ),
        "bwd": (outputs + spikes, 7 * outputs + 2 * spikes + weights, weights + outputs),
        "wup": (
            2 * weights,
            2 * (1 + timesteps) * weights + spikes + outputs,
            2 * (1 + 2 * timesteps) * weights + spikes + outputs,
        ),
    }
    pj = {
        "lif": narrow * tech.event_pj("lif") * neurons,
        "mac_fwd": narrow * tech.event_pj("acc") * macs * (1 - spike_sparsity),
        "pgu": tech.event_pj("lif_grad") * neurons,
        "mac_bwd": tech.event_pj("mac16") * macs * (1 - gradient_sparsity),
        "mac_wup": tech.event_pj("acc") * macs * (1 - spike_sparsity),
    }
    word = {"dram": tech.dram.read, "glb": tech.sram_pj(1).read, "spad": tech.scratchpad}
    for stage, counts in words.items():
        for memory, count in zip(word, counts):
            pj[f"{memory}_{stage}"] = (narrow if stage == "fwd" else 1.0) * 2 * word[memory] * count
    return {name: value * 1e-6 for name, value in pj.items()}
