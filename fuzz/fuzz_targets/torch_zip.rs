//! torch.save archives: the bytes as a whole archive, or as the pickle in a valid one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"PK") {
        d2o_fuzz::checkpoint(bytes);
    } else {
        let storage: Vec<u8> = (0..=255).collect();
        let entries = [("x/data.pkl", bytes), ("x/data/0", &storage), ("x/data/1", &storage[..64]), ("x/version", b"3\n")];
        d2o_fuzz::checkpoint(&d2o_fuzz::stored_zip(&entries));
    }
});
