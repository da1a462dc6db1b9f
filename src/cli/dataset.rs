//! Options of `d2o dataset`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

/// `d2o dataset`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  d2o dataset photos/ --resolution 64 --out data.zip\n  d2o dataset icons/svg --resolution 32 --out icons.zip"
)]
pub struct Dataset {
    /// Folder or zip of images, or folder of SVGs
    #[arg(value_name = "SRC")]
    pub source: PathBuf,
    /// Height and width of the result, pixels
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub resolution: u32,
    /// File to write
    #[arg(long, value_name = "D.zip")]
    pub out: PathBuf,
    /// Colour behind transparent SVGs
    #[arg(long, value_name = "RRGGBB", default_value = "ffffff")]
    pub background: Colour,
    /// Leave out files whose name contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub exclude: Vec<String>,
    /// Use at most this many
    #[arg(long, value_name = "N")]
    pub max_images: Option<usize>,
}

/// `rrggbb`, hexadecimal, with or without `#`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(pub [u8; 3]);

impl FromStr for Colour {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix('#').unwrap_or(text);
        let value = u32::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 6);
        let [_, r, g, b] = value.ok_or("write six hexadecimal digits, e.g. ffffff")?.to_be_bytes();
        Ok(Self([r, g, b]))
    }
}
