"""TAO's `mask2former` spec as a tree: every section and key, same spelling, same default, one comment per key.

A default carries its type. `None` marks a number that may be absent; its type stands in `OPTIONAL`.
Defaults follow the published tables first, then TAO's code; where m2f differs, a `Note:` says why.
"""

from __future__ import annotations

from m2f.config.node import CfgNode as CN  # noqa: N817 - yacs users know it by this name

# Keys whose default is None, with the type a value must have.
OPTIONAL: dict[str, type] = {
    "model.backbone.swin.qk_scale": float,
    "train.iters_per_epoch": int,
}

# Keys whose default is an empty list, with the type of an element.
ELEMENTS: dict[str, type] = {
    "dataset.train.target_size": int,
    "dataset.val.target_size": int,
    "dataset.test.target_size": int,
    "train.freeze": str,
}

# Sections of TAO commands that m2f does not have: their contents load, and one warning lists the keys that were set.
FOREIGN_SECTIONS: tuple[str, ...] = ("wandb", "gen_trt_engine", "quantize", "dataset.quant_calibration_dataset")

# Keys that TAO's own programs set or read, without meaning here: they load with the same warning.
FOREIGN_KEYS: tuple[str, ...] = ("model.export", "train.use_distributed_sampler", "export.gpu_id")


def add_tao_config(cfg: CN) -> None:
    """Add TAO's tree to an empty `cfg`."""
    # Where results go: results_dir/<task>, unless <task>.results_dir says otherwise. Empty means ./results.
    # Note: the documentation's /results is the inside of NVIDIA's container; its code has the empty default too.
    cfg.results_dir = ""
    cfg.encryption_key = ""  # encrypts model files at rest
    cfg.model_name = "mask2former"  # prefix of <model_name>_model_latest.pth
    cfg.model = _model()
    cfg.dataset = _dataset()
    cfg.train = _train()
    cfg.evaluate = _runner()
    cfg.inference = _runner()
    cfg.export = _export()


def _model() -> CN:
    model = CN()
    model.mode = "panoptic"  # semantic | panoptic | instance: the post-processing, and the default evaluator
    model.object_mask_threshold = 0.4  # panoptic: queries whose best class scores no more than this are dropped
    model.overlap_threshold = 0.8  # panoptic: least share of a query's mask that must stay visible
    model.test_topk_per_image = 100  # instance: most (query, class) pairs kept in an image

    model.backbone = _backbone()
    model.sem_seg_head = _head()
    model.mask_former = _mask_former()
    return model


def _backbone() -> CN:
    backbone = CN()
    backbone.type = "swin"  # a registered backbone
    backbone.pretrained_weights = ""  # path of backbone weights
    swin = backbone.swin = CN()
    swin.type = "tiny"  # tiny | small | base | large | huge | custom; custom frees the next three keys
    swin.embed_dim = 96  # channels of res2, doubled at each stage
    swin.depths = [2, 2, 6, 2]  # blocks of each stage
    swin.num_heads = [3, 6, 12, 24]  # attention heads of each stage
    swin.window_size = 7  # tokens along a window's side; 12 for the 384-pixel weights
    swin.pretrain_img_size = 384  # pixels; the size of the absolute position table when `ape`
    swin.ape = False  # absolute position embedding
    swin.patch_size = 4  # pixels along a patch's side
    swin.mlp_ratio = 4.0  # hidden width of a block's MLP / its channels
    swin.qkv_bias = True
    swin.qk_scale = None  # replaces 1 / sqrt(head width)
    swin.drop_rate = 0.0  # dropout of embeddings, projections and MLPs
    swin.attn_drop_rate = 0.0  # dropout of attention weights
    swin.drop_path_rate = 0.3  # stochastic depth of the last block; grows linearly from 0
    swin.patch_norm = True  # LayerNorm after the patch embedding
    swin.use_checkpoint = False  # recompute this backbone's blocks in the backward pass
    swin.out_indices = [0, 1, 2, 3]  # stages whose feature maps leave the backbone
    swin.out_features = ["res2", "res3", "res4", "res5"]  # names of feature maps that leave the backbone
    vit = backbone.efficientvit = CN()
    vit.name = "l0"  # b0 .. b3, l0 .. l3, custom
    vit.pretrain_img_size = 384  # no effect: the network has no size-dependent weight; said in the log when set
    vit.use_checkpoint = False
    # Note: TAO's code has [1, 2, 3] and never reads it; the pixel decoder needs all four, as the published table says.
    vit.out_indices = [0, 1, 2, 3]
    vit.out_features = ["res2", "res3", "res4", "res5"]
    return backbone


def _head() -> CN:
    head = CN()
    head.num_classes = 200  # real classes K; with raw ids (dataset.contiguous_id: False) the largest id
    head.norm = "GN"  # GN | LN | BN | SyncBN | "": norm of the pixel decoder's FPN convolutions
    head.common_stride = 4  # stride of the mask features
    head.transformer_enc_layers = 6  # deformable encoder layers of the pixel decoder
    head.convs_dim = 256  # width of the pixel decoder
    head.mask_dim = 256  # channels of mask features and mask embeddings
    head.deformable_transformer_encoder_in_features = ["res3", "res4", "res5"]
    return head


def _mask_former() -> CN:
    former = CN()
    former.dropout = 0.0  # of the pixel decoder's encoder
    former.nheads = 8  # attention heads of encoder and decoder
    former.num_object_queries = 100
    former.hidden_dim = 256  # width of the transformer decoder
    former.dim_feedforward = 2048  # hidden width of the transformer decoder's feed-forward blocks
    former.dec_layers = 10  # predictions: the one of the bare queries and one of each of the dec_layers - 1 layers
    former.pre_norm = False
    former.class_weight = 2.0  # loss weight and matching cost
    former.mask_weight = 5.0
    former.dice_weight = 5.0
    former.no_object_weight = 0.1  # weight of the no-object class in the classification loss
    former.deep_supervision = True  # losses on every prediction, not on the last alone
    former.train_num_points = 12544  # points at which masks are compared
    former.oversample_ratio = 3.0  # candidate points / points, before the uncertain ones are chosen
    former.importance_sample_ratio = 0.75  # share of the points chosen for uncertainty
    return former


def _dataset() -> CN:
    data = CN()
    data.pixel_mean = [0.485, 0.456, 0.406]  # RGB, of 1
    data.pixel_std = [0.229, 0.224, 0.225]
    data.contiguous_id = False  # True: label = position of the category; False: label = id - 1
    data.label_map = ""  # JSON list of {id, name, color, isthing}
    data.pin_memory = True  # page-locked batches, where there is an accelerator
    data.workers = 0  # where it is set: num_workers of every split whose own is not
    for split in ("train", "val", "test"):
        data[split] = _split()
    aug = data.augmentation = CN()
    aug.train_min_size = [640]  # shortest sides; one value v means every 64 pixels from v // 2 to 2 v
    aug.train_max_size = 2560  # cap of the longest side
    aug.train_crop_size = [640, 640]  # height, width
    aug.test_min_size = 640
    aug.test_max_size = 640
    return data


def _split() -> CN:
    split = CN()
    split.type = "ade"  # a registered dataset format: ade | coco | coco_panoptic
    split.name = ""  # a dataset of the catalog; the paths below win over it
    split.panoptic_json = ""
    split.panoptic_dir = ""
    split.instance_json = ""
    split.annot_file = ""  # the annotation file of any format
    split.img_dir = ""
    split.root_dir = ""  # what the paths above are relative to
    split.batch_size = 1  # images per process and step
    split.num_workers = 1  # loader processes; 0 loads in the main process
    split.target_size = []  # [width, height]: plain resize before everything else
    return split


def _train() -> CN:
    train = CN()
    _devices(train)
    train.seed = 1234  # of Python, NumPy and torch; negative: a fresh one
    train.cudnn = CN()
    train.cudnn.benchmark = False
    train.cudnn.deterministic = True
    train.num_epochs = 10
    train.checkpoint_interval = 1
    train.checkpoint_interval_unit = "epoch"  # epoch | step
    train.validation_interval = 1  # epochs
    train.resume_training_checkpoint_path = ""  # wins over the latest checkpoint of the results folder
    train.pretrained_model_path = ""  # weights to start from, without the training state
    train.results_dir = ""
    train.precision = "fp32"  # fp32 | fp16 | bf16
    train.distributed_strategy = "ddp"  # ddp | ddp_sharded | fsdp
    train.activation_checkpoint = True  # recompute activations of backbone and encoder in the backward pass
    train.freeze = []  # dotted module names, as m2f, the official code or TAO writes them
    train.clip_grad_type = "full"  # full: one global norm; norm: each parameter's; value: each element
    train.clip_grad_norm = 0.1  # 0 turns clipping off
    train.clip_grad_norm_type = 2.0
    train.iters_per_epoch = None  # iterations of an epoch; None: once over the data
    train.is_dry_run = False  # one iteration of training and of evaluation
    train.verbose = False  # log every change of a learning rate

    optim = train.optim = CN()
    optim.type = "AdamW"  # a registered optimiser: AdamW | SGD
    optim.lr = 2e-4  # of everything but the backbone
    optim.backbone_multiplier = 0.1  # backbone rate / lr
    optim.momentum = 0.9  # SGD's momentum; AdamW's first beta
    optim.weight_decay = 1e-4
    optim.lr_scheduler = "MultiStep"  # a registered schedule: MultiStep | StepLR | Warmuppoly | AutoReduce | ...
    optim.milestones = [11]  # epochs
    optim.gamma = 0.1
    optim.monitor_name = "val_loss"  # val_loss | train_loss: what AutoReduce watches
    return train


def _devices(node: CN) -> None:
    node.num_gpus = 1  # the larger of num_gpus and len(gpu_ids) wins
    node.gpu_ids = [0]
    node.num_nodes = 1


def _runner() -> CN:
    task = CN()
    task.checkpoint = ""  # weights to use
    task.trt_engine = ""  # TensorRT engine to use instead
    _devices(task)
    task.results_dir = ""
    task.batch_size = -1  # -1: that of dataset.val (evaluate) or dataset.test (inference)
    return task


def _export() -> CN:
    export = CN()
    export.checkpoint = ""
    export.onnx_file = ""
    export.results_dir = ""
    export.on_cpu = True  # standard operators only
    export.opset_version = 12
    export.input_channel = 3
    export.input_width = 960
    export.input_height = 544
    export.batch_size = -1  # -1: dynamic
    export.verbose = False
    return export
