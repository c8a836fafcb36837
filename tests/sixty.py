"""Sixty classifiers of timm and torchvision, drawn up to differ: name, image side, and what hinders it, if anything.

Convolutional networks are taken at a small side, to be quick; those built for one size at theirs.
"""

AUXILIARY = "returns several values"  # of torchvision's two networks with auxiliary heads, in training mode
BRANCHES = "no cut point"  # two branches of other patch sizes side by side from the first layer to the last

TIMM = {
    "resnet18": 64,
    "resnet50d": 64,
    "resnext50_32x4d": 64,
    "seresnet50": 64,
    "skresnet18": 64,
    "resnest14d": 64,
    "res2net50_26w_4s": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64,
    "tf_efficientnetv2_b0": 64,
    "mobilenetv2_050": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small_050": 64,
    "mnasnet_small": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "densenet121": 64,
    "vgg11_bn": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "maxvit_rmlp_pico_rw_256": 256,
    "levit_128s": 224,
    "pvt_v2_b0": 64,
    "hrnet_w18_small": 64,
    "inception_v3": 96,
    "nfnet_l0": 64,
    "beit_base_patch16_224": 224,
    "cait_xxs24_224": 224,
    "tiny_vit_5m_224": 224,
    "fastvit_t8": 64,
    "eva02_tiny_patch14_224": 224,
    "xcit_nano_12_p16_224": 64,
    "coat_lite_tiny": 224,
    "poolformer_s12": 64,
    "mixer_s32_224": 224,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "ghostnet_050": 64,
    "dla34": 64,
    "repvgg_a0": 64,
    "convit_tiny": 224,
    "crossvit_tiny_240": 240,
    "davit_tiny": 64,
}

TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 299,
    "maxvit_t": 224,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "resnet50": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_0": 64,
    "swin_t": 64,
    "vgg11": 64,
    "vit_b_32": 224,
}

SIDES = {f"timm/{name}": side for name, side in TIMM.items()} | {
    f"torchvision/{name}": side for name, side in TORCHVISION.items()
}
HINDERED_IN_TRAINING = {"torchvision/googlenet": AUXILIARY, "torchvision/inception_v3": AUXILIARY}
HINDERED = {"timm/crossvit_tiny_240": BRANCHES}
