"""The whole configuration: TAO's tree plus m2f's own keys, each in the section where a reader would look."""

from __future__ import annotations

from m2f.config.node import CfgNode as CN  # noqa: N817 - yacs users know it by this name
from m2f.config.tao import ELEMENTS as TAO_ELEMENTS
from m2f.config.tao import OPTIONAL, add_tao_config

# m2f's keys whose default is an empty list, with the type of an element.
ELEMENTS: dict[str, type] = {
    "train.hooks": str,
    "evaluate.tasks": str,
    "evaluate.datasets": str,
    "evaluate.evaluators": str,
    "evaluate.predictions": str,
    "evaluate.expected_results": list,
    "inference.input": str,
    "inference.tasks": str,
    "export.parity_images": str,
    **{f"{task}.tile_size": int for task in ("evaluate", "inference")},
    **{f"{task}.tta_scales": float for task in ("evaluate", "inference")},
}


def get_cfg() -> CN:
    """A fresh copy of every key with its default."""
    cfg = CN()
    add_tao_config(cfg)
    cfg.device = "auto"  # auto | cpu | cuda: auto takes CUDA where there is a device
    _add_model(cfg.model)
    _add_dataset(cfg.dataset)
    _add_train(cfg.train)
    _add_evaluate(cfg.evaluate)
    _add_inference(cfg.inference)
    _add_export(cfg.export)
    for key, kind in {**OPTIONAL, **TAO_ELEMENTS, **ELEMENTS}.items():
        cfg.declare(key, kind)
    return cfg


def _add_model(model: CN) -> None:
    model.meta_architecture = "MaskFormer"
    model.sem_seg_head.pixel_decoder = "MSDeformAttnPixelDecoder"
    model.sem_seg_head.encoder_dim_feedforward = 1024  # a constant in TAO and the official code
    model.sem_seg_head.encoder_num_points = 4  # sampling points per head and level
    model.mask_former.transformer_decoder = "MultiScaleMaskedTransformerDecoder"
    model.mask_former.criterion = "MaskCriterion"
    model.mask_former.size_divisibility = 32  # images are padded to a multiple of this
    model.mask_former.ignore_void = True  # points in void or crowd count neither in matching nor in mask losses
    model.backbone.efficientvit.family = "l"  # b | l; name: custom frees these five, which are those of l0 here
    model.backbone.efficientvit.widths = [32, 64, 128, 256, 512]  # channels of the stem and of res2 .. res5
    model.backbone.efficientvit.depths = [1, 1, 1, 4, 4]
    model.backbone.efficientvit.dim = 32  # width of a linear-attention head
    model.backbone.efficientvit.bn_eps = 1e-7
    resnet = model.backbone.resnet = CN()
    resnet.type = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101 | custom; custom frees the next four keys
    resnet.depth = 50  # 18 | 34 | 50 | 101
    resnet.stem_channels = 64
    resnet.res2_channels = 256  # output channels of res2, doubled at each stage
    resnet.width = 64  # channels of the 3x3 convolution of res2's bottlenecks, doubled at each stage
    resnet.norm = "FrozenBN"  # FrozenBN | BN | SyncBN | GN
    resnet.use_checkpoint = False
    resnet.out_features = ["res2", "res3", "res4", "res5"]
    timm = model.backbone.timm = CN()
    timm.name = ""  # any network of timm with strides 4, 8, 16, 32, e.g. tf_efficientnet_lite0, convnext_tiny
    timm.drop_path_rate = 0.0
    timm.use_checkpoint = False
    timm.out_features = ["res2", "res3", "res4", "res5"]


def _add_dataset(data: CN) -> None:
    data.root_dir = ""  # root_dir of the splits that have none of their own
    data.zero_is_ignore = True  # `ade` masks: 0 = unlabelled and classes from 1; False: 0 is the first class
    data.ignore_label = 255  # mask value that counts neither in loss nor in metric
    for split in ("train", "val", "test"):
        data[split].mask_dir = ""  # masks with the stems of the images of img_dir, where there is no list
    data.train.mapper = "TrainMapper"
    data.val.mapper = "EvalMapper"
    data.test.mapper = "EvalMapper"
    data.train.sampler = "TrainingSampler"  # TrainingSampler | RepeatFactorSampler
    data.train.repeat_threshold = 0.001  # RepeatFactorSampler: classes rarer than this share of images are repeated
    data.train.filter_empty = False  # leave out images without a target
    data.train.max_images = 0  # keep the first n images; 0 keeps all
    data.val.max_images = 0
    aug = data.augmentation
    aug.policy = "resize_crop"  # resize_crop (TAO, ADE20K) | lsj (large-scale jitter)
    aug.lsj_min_scale = 0.1
    aug.lsj_max_scale = 2.0
    aug.horizontal_flip = 0.5  # probability
    aug.vertical_flip = 0.0
    aug.color_jitter = True  # SSD's brightness, contrast, saturation and hue
    aug.crop_max_category_area = 1.0  # most of a crop that one class may cover (10 tries); 1 turns the check off


def _add_train(train: CN) -> None:
    train.resume = "auto"  # auto: go on from the latest checkpoint of the results folder | never
    train.max_iters = 0  # iterations in all; 0: num_epochs
    train.accumulate_steps = 1  # batches whose gradients are summed before a step
    train.hooks = []  # more registered hooks, after the default ones
    train.log_interval = 20  # iterations between two lines of the log
    train.num_visualizations = 4  # overlay pictures per evaluation
    train.keep_checkpoints = 0  # keep the newest n; 0 keeps all, as TAO
    train.best_metric = ""  # e.g. panoptic/PQ: keep the best checkpoint as <model_name>_model_best.pth
    train.best_mode = "max"  # max | min
    train.early_stop_patience = 0  # evaluations without a better best_metric before training ends; 0: never
    optim = train.optim
    optim.step_size = 5  # StepLR: epochs between two drops
    optim.warmup_iters = 0
    optim.warmup_factor = 0.001  # first rate / lr
    optim.poly_power = 0.9
    optim.patience = 2  # AutoReduce: this many evaluations in a row may bring no improvement; the next one drops
    optim.min_lr_factor = 0.0  # lowest rate / lr: cosine, poly and AutoReduce


def _add_evaluate(evaluate: CN) -> None:
    evaluate.tasks = []  # semantic | panoptic | instance; empty: the model's mode
    evaluate.datasets = []  # names from the catalog; empty: dataset.val
    evaluate.max_dets = [1, 10, 100]  # instances per image that count: COCO's three
    evaluate.coco_backend = "auto"  # auto | hotcoco | faster_coco_eval | pycocotools: same numbers, other speeds
    evaluate.evaluators = []  # more registered evaluators beside those of the tasks
    evaluate.save_visualizations = True
    evaluate.predictions = []  # saved predictions to evaluate instead of a model: files or folders
    evaluate.save_predictions = False  # write the answers in the official formats, a folder per dataset
    evaluate.expected_results = []  # [metric, value, tolerance] each; beyond it the command fails
    _add_merging(evaluate)


def _add_inference(inference: CN) -> None:
    inference.input = []  # images, folders, videos, and .txt lists of such; empty: dataset.test.img_dir
    inference.tasks = []  # semantic | panoptic | instance; empty: the model's mode
    inference.score_threshold = 0.5  # objects less probable are not drawn
    inference.min_score = 0.0  # objects less probable are not saved
    inference.save_overlays = True
    inference.save_predictions = True  # COCO results JSON, panoptic PNG and JSON, semantic PNG
    inference.skip_done = False  # leave out images whose results are there already
    _add_merging(inference)


def _add_merging(task: CN) -> None:
    task.tile_size = []  # [height, width]: larger images are answered tile by tile, at their own resolution
    task.tile_overlap = 0.25  # share of a tile that it has in common with the next
    task.tta_flip = False  # average with the answer for the mirrored image
    task.tta_scales = []  # average the answers for the image at these scales, 1.0 the usual


def _add_export(export: CN) -> None:
    export.outputs = "tao"  # tao | mask_logits (the runtime answers every task at any size) | panoptic_map (merged ids)
    export.normalize_in_graph = False  # the graph takes uint8 RGB
    export.dynamic_size = False  # height and width of the input are free, multiples of 32
    export.fp16 = False  # half-precision weights and activations
    export.parity_images = []  # pictures for the parity certificate; empty: the first of dataset.val or dataset.test
    export.parity_count = 4  # pictures taken from a dataset
    export.parity_tolerance = 1e-3  # largest mean difference of an output, and 1 - least agreement of the answers
