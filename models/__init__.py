"""PyTorch networks, TT layers and datasets: what the compiled code is compared with."""

from ttsnn.models.data import (
    EventDataset,
    FrameDataset,
    ImageDataset,
    SpikingDataset,
    load_dataset,
)
from ttsnn.models.events import event_frames_from_images
from ttsnn.models.lif import LIF
from ttsnn.models.lif_op import lif
from ttsnn.models.resnet import MSBlock, MSResNet
from ttsnn.models.time_axis import SpikingNetwork, TimeModule, set_time_execution
from ttsnn.models.tt_conv_op import tt_conv2d
from ttsnn.models.tt_layers import TTConv2d, TTLinear
from ttsnn.models.tt_linear_op import tt_linear
from ttsnn.models.twin import TwoWeightConv2d, apply_plan, merge_tt
from ttsnn.models.vgg import SpikingMLP, SpikingVGG
from ttsnn.models.zoo import (
    DATASETS,
    ZOO,
    DatasetSpec,
    calibrate,
    create,
    dataset_spec,
    example_input,
    spikes_of,
)
from ttsnn.weights import load_weights

__all__ = [
    "DATASETS",
    "LIF",
    "ZOO",
    "DatasetSpec",
    "EventDataset",
    "FrameDataset",
    "ImageDataset",
    "MSBlock",
    "MSResNet",
    "SpikingDataset",
    "SpikingMLP",
    "SpikingNetwork",
    "SpikingVGG",
    "TTConv2d",
    "TTLinear",
    "TimeModule",
    "TwoWeightConv2d",
    "apply_plan",
    "calibrate",
    "create",
    "dataset_spec",
    "event_frames_from_images",
    "example_input",
    "lif",
    "load_dataset",
    "load_weights",
    "merge_tt",
    "set_time_execution",
    "spikes_of",
    "tt_conv2d",
    "tt_linear",
]
