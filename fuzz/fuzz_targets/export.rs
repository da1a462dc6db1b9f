//! Checkpoints of every format → configuration → layout → graph.
#![no_main]

use d2o_converters::Checkpoint;
use d2o_converters::export::{self, FeatureOptions, GeneratorOptions, Kind, Options, PixelInput};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    d2o_fuzz::with_file(bytes, |path| {
        let Ok(checkpoint) = Checkpoint::open(path) else { return };
        for network in &checkpoint.networks {
            for kind in [Kind::OneStep, Kind::Denoiser] {
                let _ = export::denoiser(network, &Options { kind, uint8: true, ..Options::default() });
            }
            let _ = export::generator(network, &GeneratorOptions::default());
            if let Some(size) = network.architecture.feature_size() {
                let options = FeatureOptions {
                    input: PixelInput::U8,
                    image_size: 8,
                    input_size: size,
                    activation: None,
                    head_width: None,
                    taps: true,
                };
                let _ = export::features(network, &options, "");
            }
        }
    });
});
