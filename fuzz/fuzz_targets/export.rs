//! Checkpoints of every format → configuration → network → graph.
#![no_main]

use d2o_converters::Checkpoint;
use d2o_converters::export::{self, FeatureOptions, GeneratorOptions, Kind, Options};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    d2o_fuzz::with_file(bytes, |path| {
        let Ok(checkpoint) = Checkpoint::open(path) else { return };
        for network in &checkpoint.networks {
            for kind in [Kind::OneStep, Kind::Denoiser] {
                let _ = export::denoiser(network, &Options { kind, uint8: true, ..Options::default() });
            }
            let _ = export::generator(network, &GeneratorOptions::default());
            if let Some(extractor) = network.architecture.extractor() {
                let size = extractor.input_size();
                let options = FeatureOptions { image_size: 8, taps: true, ..FeatureOptions::of_size(size) };
                let _ = export::features(network, &options, "");
            }
        }
    });
});
