//! The arguments that name files to read.

use std::path::PathBuf;

use super::{Command, Refs};

/// Kind of an input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// The file as it is.
    File,
    /// Images, features, or the graph or checkpoint of a generator.
    Samples,
    /// The graph or checkpoint of a generator.
    Generator,
    /// The graph or checkpoint of a feature extractor.
    Extractor,
}

/// An argument that names a file to read: a path, an address or a name of `d2o known`.
#[derive(Debug)]
pub struct Input<'a> {
    /// The argument.
    pub path: &'a mut PathBuf,
    /// Its kind.
    pub takes: Takes,
}

impl Command {
    /// The arguments that name files to read.
    pub fn inputs<'a>(&'a mut self) -> Vec<Input<'a>> {
        use Takes::{Extractor, File, Generator, Samples};
        let mut found = Vec::new();
        let mut add = |takes: Takes, paths: Vec<&'a mut PathBuf>| {
            found.extend(paths.into_iter().map(|path| Input { path, takes }));
        };
        match self {
            Self::Export(a) => add(File, [&mut a.source].into_iter().chain(&mut a.config).collect()),
            Self::Inspect(a) => add(File, a.files.iter_mut().collect()),
            Self::Generate(a) => {
                add(Generator, vec![&mut a.model]);
                add(File, a.sampling.latents.iter_mut().collect());
            }
            Self::Refs(Refs::Make(a)) => {
                add(File, vec![&mut a.data]);
                add(Extractor, a.extractor.iter_mut().chain(&mut a.pr_extractor).chain(&mut a.clip).collect());
            }
            Self::Refs(Refs::Inspect(a)) => {
                add(File, [&mut a.file].into_iter().chain(&mut a.samples).collect());
            }
            Self::Evaluate(a) => {
                add(Samples, a.samples.iter_mut().collect());
                let files = a.reference.iter_mut().chain(&mut a.clip_ref).chain(&mut a.merge);
                add(File, files.chain(&mut a.sampling.latents).collect());
                add(Extractor, a.extractor.iter_mut().chain(&mut a.pr_extractor).chain(&mut a.clip).collect());
            }
            Self::Verify(a) => {
                let files = [&mut a.model].into_iter().chain(&mut a.against).chain(&mut a.checkpoint);
                add(File, files.chain(&mut a.reference).chain(&mut a.fp16).collect());
                add(Extractor, a.extractor.iter_mut().collect());
            }
            Self::Train(a) => {
                let settings = &mut a.settings;
                add(File, settings.inputs());
            }
            Self::Dataset(a) => add(File, vec![&mut a.source]),
            Self::Report(a) => add(File, a.images.iter_mut().map(|t| &mut t.path).collect()),
            Self::Explain(_)
            | Self::Draw(_)
            | Self::Known(_)
            | Self::Fetch(_)
            | Self::Reproduce(_)
            | Self::Doctor(_)
            | Self::Completions { .. }
            | Self::Man { .. } => {}
        }
        found
    }
}
