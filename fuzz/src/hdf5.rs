//! Mutations of HDF5 files that keep their structure. libhdf5 is C and gives the fuzzer no coverage, so random changes
//! would rarely pass its first checks.

/// Signatures of metadata: superblock, tree, heaps, symbol table, object headers, and the indices of newer files.
const SIGNATURES: [&[u8; 4]; 16] = [
    b"\x89HDF", b"TREE", b"HEAP", b"SNOD", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN", b"FAHD", b"EAHD", b"SMTB",
];
/// Approximate size of the metadata after a signature, bytes.
const NEAR: usize = 96;
/// Sizes, counts and addresses that readers often handle wrong.
const VALUES: [u64; 14] = [
    0, 1, 2, 7, 0x7f, 0xff, 0x100, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX,
];

/// A linear congruential generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % end.max(1)
    }
}

/// Mutates the first `size` bytes of `bytes` and returns the new size, at most `room`. Changes one to four fields near
/// signatures, in object headers or anywhere, or applies libFuzzer's own mutations.
pub fn mutate(bytes: &mut [u8], size: usize, room: usize, seed: u32) -> usize {
    let mut random = Random(u64::from(seed) ^ 0x5851_f42d_4c95_7f2d);
    if size < 64 || random.below(8) == 0 {
        return libfuzzer_sys::fuzzer_mutate(bytes, size, room);
    }
    let places: Vec<usize> =
        (0..size - 4).filter(|at| SIGNATURES.iter().any(|s| bytes[*at..].starts_with(&s[..]))).collect();
    for _ in 0..=random.below(4) {
        let at = match random.below(4) {
            0 => random.below(size),
            // Object headers have no signature in old files. Their messages begin at multiples of 8.
            1 => random.below(size) & !7,
            _ if places.is_empty() => random.below(size),
            _ => places[random.below(places.len())] + random.below(NEAR),
        };
        let width = [1, 1, 2, 4, 8][random.below(5)].min(size.saturating_sub(at));
        let value = match random.below(4) {
            // The address of other metadata; the present byte plus -1, 0 or 1; an offset in the file; or one of
            // `VALUES`.
            0 if !places.is_empty() => places[random.below(places.len())] as u64,
            1 => u64::from(bytes[at.min(size - 1)]).wrapping_add(random.below(3) as u64).wrapping_sub(1),
            2 => random.below(size + 1) as u64,
            _ => VALUES[random.below(VALUES.len())],
        };
        bytes[at.min(size)..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    size
}
