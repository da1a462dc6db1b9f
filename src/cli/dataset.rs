//! Options of `d2o dataset`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

/// `d2o dataset`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --transform, --resolution crops the central square and resizes it (center-crop); without both, images are stored as they are.
Crops, filter (Lanczos) and image order match EDM's dataset_tool.py; --transform, --resolution, --max-images and --dest mean the same there. dataset_tool.py with --resolution alone corresponds to `--transform resize`.

Examples:
  d2o dataset photos/ --resolution 64 --out data.zip
  d2o dataset photos/ --transform center-crop-wide --resolution 512x384 --out wide.zip
  d2o dataset cifar-10-python.tar.gz --out cifar10.zip
  d2o dataset train-images-idx3-ubyte.gz --grey --out mnist.zip
  d2o dataset animals/ --labels folders --resolution 64 --out animals/
  d2o dataset icons/ --exclude dark --background ffffff --resolution 32 --out icons.zip")]
pub struct Dataset {
    /// Folder (searched recursively) or zip of images and SVGs; npz, npy or HDF5 file; cifar-10-python.tar.gz; IDX file of MNIST; LMDB folder of LSUN
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Zip to write; a name without `.zip` becomes a folder with the same files
    #[arg(long, visible_alias = "dest", value_name = "D.zip|DIR")]
    pub out: PathBuf,
    /// Output resolution, pixels: 64, or 512x384 (width x height)
    #[arg(long, value_name = "N|WxH")]
    pub resolution: Option<Resolution>,
    /// Crop and resize mode [default: center-crop with --resolution, else none]
    #[arg(long, value_name = "MODE")]
    pub transform: Option<TransformArg>,
    /// Source of the labels
    #[arg(long, value_name = "FROM", default_value = "auto")]
    pub labels: LabelsArg,
    /// Background colour of transparent pixels [default: white for SVGs; other images drop their alpha channel]
    #[arg(long, value_name = "RRGGBB")]
    pub background: Option<Colour>,
    /// Store greyscale images with one channel; colour images are an error
    #[arg(long)]
    pub grey: bool,
    /// Apply the EXIF orientation; dataset_tool.py does not
    #[arg(long)]
    pub apply_exif: bool,
    /// Exclude files whose path in SRC contains TEXT; repeatable
    #[arg(long, value_name = "TEXT")]
    pub exclude: Vec<String>,
    /// Use the first N images only
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
    /// Output.
    #[command(flatten)]
    pub output: super::Output,
    /// Accept resolutions that are not a square power of two
    #[arg(long)]
    pub any_size: bool,
}

/// Values of `--transform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransformArg {
    /// Store images as they are; all must have one size
    None,
    /// Resize without cropping; the aspect ratio is not kept
    Resize,
    /// Crop the central square and resize it
    CenterCrop,
    /// Crop the central rows, resize, and pad with black rows to a square; smaller images are skipped
    CenterCropWide,
}

/// Values of `--labels`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LabelsArg {
    /// Labels of the source; for a folder without dataset.json, its top-level folders if there are several
    Auto,
    /// dataset.json, or the labels of the npz, HDF5, CIFAR or MNIST file
    Source,
    /// One class per top-level folder, numbered in the order of the folder names
    Folders,
    /// No labels
    None,
}

/// Height and width, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Largest side of a result, pixels.
const MAX_SIDE: usize = 4096;

impl FromStr for Resolution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| {
            let side = text.parse().ok().filter(|n| (1..=MAX_SIDE).contains(n));
            side.ok_or_else(|| format!("expected sides of 1 to {MAX_SIDE} pixels, e.g. 64 or 512x384"))
        };
        match text.split_once(['x', ',']) {
            Some((width, height)) => Ok(Self { height: side(height)?, width: side(width)? }),
            None => side(text).map(|n| Self { height: n, width: n }),
        }
    }
}

/// `rrggbb`, hexadecimal, with or without `#`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

impl FromStr for Colour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        let value = u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 6);
        let [_, r, g, b] = value.ok_or("expected six hexadecimal digits, e.g. ffffff")?.to_be_bytes();
        Ok(Self([r, g, b]))
    }
}
