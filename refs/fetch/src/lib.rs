#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod error;

mod download;
mod fetch;
mod hash;
mod http;
mod hub;
mod partial;
mod progress;
mod record;
mod request;
mod settings;
mod source;
mod url;

pub use error::{Error, Result};
pub use fetch::fetch;
pub use hash::PublishedHash;
pub use progress::{Event, Progress};
pub use request::{Fetched, HashCheck, Origin, Request};
pub use settings::{Secret, Settings, cache_folder};
pub use source::Source;
