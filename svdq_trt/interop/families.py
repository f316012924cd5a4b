"""Nunchaku's names for the layers of each model family, as data. A family is one table here.

A row is one layer of a block: its name in the C++ engine's files (`old`), in the Python modules' files (`new`), and
the diffusers linears that are stacked in it. Tensors that no row names have diffusers' names.

Sources: the loaders of nunchaku 1.x (transformer_flux_v2.py, unet_sdxl.py, transformer_qwenimage.py,
transformer_zimage.py, SanaModel.cpp) and deepcompressor's converter. PixArt has no nunchaku runtime: its table
follows the same rules, for files written by this tool.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One layer of a block.

    Attributes:
        old, new: its names below the block. members: diffusers' names below the block, stacked on rows.
        chunks: number of chunks of an adaLN linear (W4A16, reordered); 0 otherwise.
        unsigned: its input is a GELU's output, quantized to u4 after a shift (int4 only).
        layout: layout of the rows, see w4a4.Rows.of.
        part: of one linear split by input features, 0 the first or 1 the second; None: all of it.
        quantized: False for a 16-bit layer that is only renamed or stacked.
    """

    old: str
    new: str
    members: tuple[str, ...]
    chunks: int = 0
    unsigned: bool = False
    layout: str = "stacked"
    quantized: bool = True
    part: int | None = None


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        classes: diffusers' class names. model_class: nunchaku's, for the metadata.
        blocks: regular expression of a block's module name -> its rows.
        old_keys: the generation of key names that nunchaku's loader of this family reads: that of the C++ engine, or
            that of the Python modules. It takes no other: FLUX's and SDXL's rename the older ones into the newer.
        tensor_scale: whether that loader takes nvfp4's `wtscale`; else the scale of each row has to hold it.
        loaders: further names for the model in a file's `_class_name` and `model_class`.
    """

    name: str
    classes: tuple[str, ...]
    model_class: str
    blocks: dict[str, tuple[Row, ...]]
    old_keys: bool
    tensor_scale: bool = True
    loaders: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What a file may call the model: diffusers' class or one of nunchaku's."""
        return (*self.classes, self.model_class, *self.loaders)


def _same(name: str, *members: str, unsigned: bool = False) -> Row:
    """A layer with the same name in both generations, which is diffusers' name, too, unless members are given."""
    return Row(name, name, members or (name,), unsigned=unsigned)


def _renamed(old: str, new: str) -> Row:
    return Row(old, new, (new,), quantized=False)


_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_ADD_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

FLUX = Family(
    "flux",
    ("FluxTransformer2DModel",),
    "NunchakuFluxTransformer2dModel",
    {
        r"transformer_blocks\.\d+": (
            Row("norm1.linear", "norm1.linear", ("norm1.linear",), chunks=6),
            Row("norm1_context.linear", "norm1_context.linear", ("norm1_context.linear",), chunks=6),
            Row("qkv_proj", "attn.to_qkv", _QKV),
            Row("qkv_proj_context", "attn.add_qkv_proj", _ADD_QKV),
            Row("out_proj", "attn.to_out.0", ("attn.to_out.0",)),
            Row("out_proj_context", "attn.to_add_out", ("attn.to_add_out",)),
            Row("mlp_fc1", "ff.net.0.proj", ("ff.net.0.proj",)),
            Row("mlp_fc2", "ff.net.2", ("ff.net.2",), unsigned=True),
            Row("mlp_context_fc1", "ff_context.net.0.proj", ("ff_context.net.0.proj",)),
            Row("mlp_context_fc2", "ff_context.net.2", ("ff_context.net.2",), unsigned=True),
            *(_renamed(n, f"attn.{n}") for n in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")),
        ),
        r"single_transformer_blocks\.\d+": (
            Row("norm.linear", "norm.linear", ("norm.linear",), chunks=3),
            Row("qkv_proj", "attn.to_qkv", _QKV),
            Row("out_proj", "attn.to_out", ("proj_out",), part=0),
            Row("mlp_fc1", "mlp_fc1", ("proj_mlp",)),
            Row("mlp_fc2", "mlp_fc2", ("proj_out",), unsigned=True, part=1),
            *(_renamed(n, f"attn.{n}") for n in ("norm_q", "norm_k")),
        ),
    },
    old_keys=True,
    loaders=("NunchakuFluxTransformer2DModelV2",),
)

SDXL = Family(
    "sdxl",
    ("UNet2DConditionModel",),
    "NunchakuSDXLUNet2DConditionModel",
    {
        r".*\.transformer_blocks\.\d+": (
            _same("attn1.to_qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
            _same("attn1.to_out.0"),
            _same("attn2.to_q"),
            _same("attn2.to_out.0"),
            _same("ff.net.0.proj"),
            _same("ff.net.2"),
        )
    },
    old_keys=True,
    tensor_scale=False,
)

QWEN = Family(
    "qwen-image",
    ("QwenImageTransformer2DModel",),
    "NunchakuQwenImageTransformer2DModel",
    {
        r"transformer_blocks\.\d+": (
            Row("img_mod.1", "img_mod.1", ("img_mod.1",), chunks=6),
            Row("txt_mod.1", "txt_mod.1", ("txt_mod.1",), chunks=6),
            _same("attn.to_qkv", *_QKV),
            _same("attn.add_qkv_proj", *_ADD_QKV),
            _same("attn.to_out.0"),
            _same("attn.to_add_out"),
            _same("img_mlp.net.0.proj"),
            _same("img_mlp.net.2", unsigned=True),
            _same("txt_mlp.net.0.proj"),
            _same("txt_mlp.net.2", unsigned=True),
        )
    },
    old_keys=False,
)

Z_IMAGE = Family(
    "z-image",
    ("ZImageTransformer2DModel",),
    "NunchakuZImageTransformer2DModel",
    {
        r"(layers|noise_refiner|context_refiner)\.\d+": (
            _same("attention.to_qkv", "attention.to_q", "attention.to_k", "attention.to_v"),
            _same("attention.to_out.0"),
            # a SwiGLU of diffusers' FeedForward: the value's rows (w3), then the gate's (w1)
            Row("feed_forward.net.0.proj", "feed_forward.net.0.proj", ("feed_forward.w3", "feed_forward.w1")),
            Row("feed_forward.net.2", "feed_forward.net.2", ("feed_forward.w2",)),
        )
    },
    old_keys=False,
)

SANA = Family(
    "sana",
    ("SanaTransformer2DModel",),
    "NunchakuSanaTransformer2DModel",
    {
        r"transformer_blocks\.\d+": (
            # linear attention works on heads padded to whole tiles, so q, k and v are padded one by one
            Row("attn.qkv_proj", "attn.to_qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), layout="each"),
            Row("attn.out_proj", "attn.to_out.0", ("attn1.to_out.0",)),
            Row("cross_attn.q_linear", "attn2.to_q", ("attn2.to_q",)),
            Row("cross_attn.kv_linear", "attn2.to_kv", ("attn2.to_k", "attn2.to_v"), quantized=False),
            Row("cross_attn.out_proj", "attn2.to_out.0", ("attn2.to_out.0",)),
            # the gated unit reads neighbouring channels as value and gate
            Row("ff.inverted_conv", "ff.conv_inverted", ("ff.conv_inverted",), layout="pairs"),
            Row("ff.depth_conv", "ff.conv_depth", ("ff.conv_depth",), layout="pairs", quantized=False),
            Row("ff.point_conv", "ff.conv_point", ("ff.conv_point",)),
        )
    },
    old_keys=True,
)

PIXART = Family(
    "pixart",
    ("PixArtTransformer2DModel",),
    "NunchakuPixArtTransformer2DModel",
    {
        r"transformer_blocks\.\d+": (
            _same("attn1.to_qkv", "attn1.to_q", "attn1.to_k", "attn1.to_v"),
            _same("attn1.to_out.0"),
            _same("attn2.to_q"),
            _same("attn2.to_out.0"),
            _same("ff.net.0.proj"),
            _same("ff.net.2", unsigned=True),
        )
    },
    old_keys=False,
)

FAMILIES: tuple[Family, ...] = (FLUX, SDXL, QWEN, Z_IMAGE, SANA, PIXART)


def family_of(class_name: str) -> Family | None:
    """The family of a diffusers class."""
    return next((f for f in FAMILIES if class_name in f.classes), None)
