//! Image files of every format. The size in the header must equal the size of the pixels.
#![no_main]

use std::path::Path;

use d2o_refs::decode;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let file = Path::new("x");
    let size = decode::dims(file, "", bytes);
    if let Ok(image) = decode::image(file, "", bytes) {
        let (height, width) = image.dims();
        assert_eq!(size.ok().flatten(), Some((height, width)), "size by the header and of the pixels");
    }
});
