"""Inference and training steps on a GPU: ttsnn against PyTorch.

Three parts. ``compile`` needs TVM's compiler and nvcc (or NVRTC), but no GPU: it writes a folder
with compiled cases. ``run`` needs a GPU, PyTorch, and TVM's runtime alone: the folder of this
file travels in a bundle (``ttsnn export … --bundle FOLDER --add benchmarks/gpu --add cases``),
whose libraries it finds by itself. ``roofline`` and ``plot`` need neither.

    python benchmarks/gpu compile cases --archs sm_80+sm_90 --preset first
    python benchmarks/gpu compile cases --networks ms_resnet18 --modes ptt --batches 32
    python benchmarks/gpu run cases --minutes 20 --out benchmarks/results/gpu.json
    python benchmarks/gpu summary benchmarks/results/gpu.json
    python benchmarks/gpu plot benchmarks/results/gpu.json
    python benchmarks/gpu roofline --network ms_resnet34 --mode ptt --batch 128 --gpu H100

``run`` gives each case a process of its own, so that one which fails, hangs or breaks the device
is an entry in the results and the others go on; the most important cases come first
(:func:`gpu.cases.importance`), and what is measured is written at once. Before a case is timed
its results are compared with those that PyTorch computed where it was compiled.

Times are medians of blocks of calls between CUDA events, one contender after the other, each
alone in the GPU's memory. A share is of the data sheet's rate (:data:`gpu.limits.LIMITS`), for
the multiply-accumulates and the bytes that the compiled program itself computes and touches.
"""
