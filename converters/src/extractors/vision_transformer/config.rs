//! Families, sizes inferred from tensor shapes, and tensor names.

use d2o_checkpoint::TensorSource;

use crate::error::{Result, config};
use crate::extractors::Activation;

/// Width of an attention head, except in CLIP image encoders wider than [`KNOWN_HEADS`].
const HEAD: usize = 64;
/// Maximum width up to which all CLIP image encoders have heads of width [`HEAD`].
const KNOWN_HEADS: usize = 1024;
/// Default height and width of the input of DINOv2, pixels. It was trained at 518.
const DINO_INPUT: usize = 224;

/// Family of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// CLIP image encoder.
    Clip,
    /// DeiT with a distillation token.
    Deit,
    /// DINOv2 without registers.
    Dino,
}

/// Configuration of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VitConfig {
    /// The family.
    pub family: Family,
    /// Height and width of a patch, pixels.
    pub patch: usize,
    /// Number of patches along each side in the position embedding.
    pub grid: usize,
    /// Length of a token.
    pub width: usize,
    /// Width of the MLP of a block.
    pub mlp_dim: usize,
    /// Width of an attention head, if it is known. Tensor shapes do not determine it.
    pub head: Option<usize>,
    /// Number of blocks.
    pub blocks: usize,
    /// CLIP: length of the features. DeiT: number of classes. DINOv2: 0.
    pub outputs: usize,
    /// Whether queries, keys and values are one tensor.
    pub packed: bool,
    /// Activation of the MLPs, if the file determines it.
    pub activation: Option<Activation>,
    /// Whether the file has DINOv2's `mask_token`, which only training uses.
    pub mask_token: bool,
}

impl VitConfig {
    /// CLIP ViT-B/32 as OpenAI stores it.
    #[must_use]
    pub fn clip_b_32() -> Self {
        Self {
            family: Family::Clip,
            patch: 32,
            grid: 7,
            width: 768,
            mlp_dim: 3072,
            head: Some(HEAD),
            blocks: 12,
            outputs: 512,
            packed: true,
            activation: Some(Activation::QuickGelu),
            mask_token: false,
        }
    }

    /// DeiT-B with a distillation token, patches of 16 pixels and images of 224 pixels.
    #[must_use]
    pub fn deit_base_distilled() -> Self {
        let (family, activation) = (Family::Deit, Some(Activation::Gelu));
        Self { family, patch: 16, grid: 14, outputs: 1000, activation, ..Self::clip_b_32() }
    }

    /// Infers the configuration from `tensors` with the names of `family`.
    ///
    /// # Errors
    /// `Config` if the shapes are not those of such a network.
    pub fn of(family: Family, tensors: &dyn TensorSource, activation: Option<Activation>) -> Result<Self> {
        let names = family.names();
        let dims = |name: &str| tensors.info(name).map(|i| i.dims).unwrap_or_default();
        let wrong = |what: String| config(format!("{} network: {what}", family.title()));
        let conv = dims(names.patch);
        let &[width, 3, patch, same] = conv.as_slice() else {
            return Err(wrong(format!("expected a patch embedding [width, 3, patch, patch], found {conv:?}")));
        };
        if patch == 0 || patch != same || width == 0 {
            return Err(wrong(format!("expected a patch embedding with square patches, found {conv:?}")));
        }
        let head = (family != Family::Clip || width <= KNOWN_HEADS).then_some(HEAD);
        let tokens = dims(names.position).iter().rev().nth(1).copied().unwrap_or(0);
        let grid = tokens.saturating_sub(names.tokens.len()).isqrt();
        if grid == 0 || grid * grid + names.tokens.len() != tokens {
            return Err(wrong(format!(
                "expected a square number of positions plus {}, found {tokens}",
                names.tokens.len()
            )));
        }
        let block = |i: usize, name: &str| dims(&format!("{}.{i}.{name}", names.blocks));
        let first_norm = format!("{}.weight", names.norms[0]);
        let blocks = (0..tensors.names().len()).take_while(|i| !block(*i, &first_norm).is_empty()).count();
        let mlp_dim = block(0, &format!("{}.weight", names.mlp[0])).first().copied().unwrap_or(0);
        if blocks == 0 || mlp_dim == 0 {
            return Err(wrong(format!("incomplete tensors: {blocks} blocks with MLPs of width {mlp_dim}")));
        }
        let outputs = match family {
            Family::Clip => dims("proj").get(1).copied().unwrap_or(0),
            Family::Deit => dims("head.weight").first().copied().unwrap_or(0),
            Family::Dino => 0,
        };
        let (scope, leaf, _) = names.packed;
        let packed = if scope.is_empty() { leaf.to_owned() } else { format!("{scope}.{leaf}") };
        let packed = !block(0, &packed).is_empty();
        let activation = if family == Family::Clip { activation } else { Some(Activation::Gelu) };
        let mask_token = family == Family::Dino && !dims("mask_token").is_empty();
        Ok(Self { family, patch, grid, width, mlp_dim, head, blocks, outputs, packed, activation, mask_token })
    }

    /// Default height and width of the input, pixels.
    #[must_use]
    pub fn input_size(&self) -> usize {
        match self.family {
            Family::Dino if DINO_INPUT.is_multiple_of(self.patch) => DINO_INPUT,
            _ => self.patch * self.grid,
        }
    }

    /// Length of the features.
    #[must_use]
    pub fn features(&self) -> usize {
        if self.family == Family::Clip { self.outputs } else { self.width }
    }

    /// Name of the extractor: the published name, or a name made from the sizes.
    #[must_use]
    pub fn name(&self) -> String {
        let size = match (self.width, self.blocks) {
            (384, 12) => "s".to_owned(),
            (768, 12) => "b".to_owned(),
            (1024, 24) => "l".to_owned(),
            (width, blocks) => format!("{width}x{blocks}"),
        };
        let patch = self.patch;
        match self.family {
            // Models of OpenAI use QuickGELU. Later models of LAION with the same sizes use GELU.
            Family::Clip if self.activation == Some(Activation::Gelu) => format!("open-clip-vit-{size}-{patch}"),
            Family::Clip if self.patch * self.grid == 224 => format!("clip-vit-{size}-{patch}"),
            Family::Clip => format!("clip-vit-{size}-{patch}-{}px", self.patch * self.grid),
            Family::Deit => format!("deit-{size}-distilled-patch{patch}-{}", self.patch * self.grid),
            Family::Dino => format!("dinov2-vit-{size}-{patch}"),
        }
    }
}

/// Tensor names of a family.
pub(super) struct Names {
    /// Convolution over the patches.
    pub(super) patch: &'static str,
    /// Tokens before the patches, in order.
    pub(super) tokens: &'static [&'static str],
    pub(super) position: &'static str,
    pub(super) blocks: &'static str,
    pub(super) norms: [&'static str; 2],
    /// Scope, weight and bias of the packed queries, keys and values.
    pub(super) packed: (&'static str, &'static str, &'static str),
    pub(super) attention: &'static str,
    pub(super) mlp: [&'static str; 2],
    pub(super) last_norm: &'static str,
    pub(super) eps: f64,
}

impl Family {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Clip => "CLIP",
            Self::Deit => "DeiT",
            Self::Dino => "DINOv2",
        }
    }

    pub(super) fn names(self) -> &'static Names {
        const CLIP: Names = Names {
            patch: "conv1.weight",
            tokens: &["class_embedding"],
            position: "positional_embedding",
            blocks: "transformer.resblocks",
            norms: ["ln_1", "ln_2"],
            packed: ("attn", "in_proj_weight", "in_proj_bias"),
            attention: "attn.out_proj",
            mlp: ["mlp.c_fc", "mlp.c_proj"],
            last_norm: "ln_post",
            eps: 1e-5,
        };
        const DINO: Names = Names {
            patch: "patch_embed.proj.weight",
            tokens: &["cls_token"],
            position: "pos_embed",
            blocks: "blocks",
            norms: ["norm1", "norm2"],
            packed: ("attn.qkv", "weight", "bias"),
            attention: "attn.proj",
            mlp: ["mlp.fc1", "mlp.fc2"],
            last_norm: "norm",
            eps: 1e-6,
        };
        const DEIT: Names = Names { tokens: &["cls_token", "dist_token"], ..DINO };
        match self {
            Self::Clip => &CLIP,
            Self::Deit => &DEIT,
            Self::Dino => &DINO,
        }
    }
}
