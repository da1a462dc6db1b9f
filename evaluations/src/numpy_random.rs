//! NumPy's legacy `RandomState`: the same subsets, orders and normals as in the Python tools.
//!
//! Source: the Mersenne Twister seeded from an integer (`init_genrand`), and the `RandomState` streams that NumPy froze
//! (NEP 19).

use crate::mt19937::Mt19937;

/// `numpy.random.RandomState(seed)` for a 32-bit integer seed.
///
/// ```
/// use d2o_evaluations::numpy_random::RandomState;
/// assert_eq!(RandomState::new(2020).permutation(5), [3, 1, 2, 4, 0]);
/// ```
#[derive(Debug, Clone)]
pub struct RandomState {
    twister: Mt19937,
    /// Second normal of the last pair, for the next call.
    waiting: Option<f64>,
}

impl RandomState {
    /// Seeded as `RandomState(seed)`.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { twister: Mt19937::new(seed), waiting: None }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        self.twister.word()
    }

    /// `random_sample()`: uniform in [0, 1), 53 bits.
    fn uniform(&mut self) -> f64 {
        let (upper, lower) = (self.next_u32() >> 5, self.next_u32() >> 6);
        (f64::from(upper) * 67_108_864.0 + f64::from(lower)) / 9_007_199_254_740_992.0
    }

    /// `randn(count)`: normals of the polar method. They come in pairs; an unused second one is kept for the next call.
    #[must_use]
    pub fn randn(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.normal()).collect()
    }

    fn normal(&mut self) -> f64 {
        if let Some(value) = self.waiting.take() {
            return value;
        }
        loop {
            let (x, y) = (2.0 * self.uniform() - 1.0, 2.0 * self.uniform() - 1.0);
            let square = x * x + y * y;
            if square < 1.0 && square != 0.0 {
                let scale = (-2.0 * square.ln() / square).sqrt();
                self.waiting = Some(scale * x);
                return scale * y;
            }
        }
    }

    /// The next 64 bits, the upper half first.
    fn next_u64(&mut self) -> u64 {
        let upper = u64::from(self.next_u32());
        (upper << 32) | u64::from(self.next_u32())
    }

    /// Uniform in `0..=max`: draws are masked to the bits of `max`, and masked values above it are rejected.
    fn up_to(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let drawn = if max <= u64::from(u32::MAX) { u64::from(self.next_u32()) } else { self.next_u64() };
            if drawn & mask <= max {
                return drawn & mask;
            }
        }
    }

    /// `randint(bound)`.
    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.up_to(u64::from(bound.saturating_sub(1)))).unwrap_or(0)
    }

    /// `shuffle(values)`.
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for i in (1..values.len()).rev() {
            let j = usize::try_from(self.up_to(i as u64)).unwrap_or(0);
            values.swap(i, j);
        }
    }

    /// `permutation(n)`.
    #[must_use]
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// `choice(n, count, replace=False)`: the first `count` elements of a permutation, or all `n` if `count` is larger.
    #[must_use]
    pub fn choice(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut order = self.permutation(n);
        order.truncate(count);
        order
    }

    /// `randint(low, high, count)` of 64-bit integers, `low <= x < high`; empty if there is no such integer.
    #[must_use]
    pub fn randint(&mut self, low: i64, high: i64, count: usize) -> Vec<i64> {
        let Some(range) = high.checked_sub(1).filter(|last| *last >= low).map(|last| last.abs_diff(low)) else {
            return Vec::new();
        };
        (0..count).map(|_| low.wrapping_add_unsigned(self.up_to(range))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Constants printed by NumPy 2.4.6.

    #[test]
    fn words() {
        let mut rng = RandomState::new(0);
        // `RandomState(0).bytes(12)` as little-endian words, because `tomaxint` and full-range `randint` hide bits.
        assert_eq!([rng.next_u32(), rng.next_u32(), rng.next_u32()], [2_357_136_044, 2_546_248_239, 3_071_714_933]);
        let mut rng = RandomState::new(4_294_967_295);
        for _ in 0..1999 {
            rng.next_u32();
        }
        assert_eq!(rng.next_u32(), 1_762_272_365);
    }

    #[test]
    fn permutations_and_shuffles() {
        assert_eq!(RandomState::new(2020).permutation(12), [2, 1, 11, 4, 10, 5, 7, 9, 6, 3, 8, 0]);
        let mut rng = RandomState::new(123);
        let mut values: Vec<u32> = (10..20).collect();
        rng.shuffle(&mut values);
        assert_eq!(values, [14, 10, 17, 15, 18, 13, 11, 16, 19, 12]);
        assert_eq!(rng.permutation(1000)[..6], [50, 784, 204, 85, 802, 891]);
        assert_eq!(rng.permutation(1), [0]);
        assert_eq!(rng.permutation(0), [] as [usize; 0]);
        assert_eq!(rng.permutation(4), [1, 2, 3, 0]);
    }

    #[test]
    fn choices_without_replacement() {
        let mut rng = RandomState::new(2020);
        assert_eq!(rng.choice(1500, 5), [1170, 737, 148, 824, 396]);
        assert_eq!(rng.choice(7, 3), [3, 6, 2]);
        let mut all = rng.choice(300, 300);
        all.sort_unstable();
        assert_eq!(all, (0..300).collect::<Vec<_>>());
    }

    #[test]
    fn normals() {
        let mut rng = RandomState::new(7);
        let close = |found: &[f64], expected: &[f64]| {
            assert!(
                found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-14),
                "{found:?} differs from {expected:?}"
            );
        };
        let first = [
            1.690_525_703_800_356,
            -0.465_937_370_540_832_8,
            0.032_820_163_678_584_4,
            0.407_516_282_996_507_83,
            -0.788_923_028_625_738_6,
        ];
        close(&rng.randn(5), &first);
        assert_eq!(rng.below(1000), 730);
        // The second normal of the last pair comes first.
        close(&rng.randn(3), &[0.002_065_572_905_948_13, 0.020_064_386_981_922_06, -0.349_830_132_522_562_07]);
    }

    #[test]
    fn integers() {
        let mut rng = RandomState::new(7);
        assert_eq!(rng.randint(0, 1000, 6), [175, 196, 537, 502, 579, 211]);
        assert_eq!(rng.randint(-5, 6, 6), [2, 2, 4, 2, 3, 4]);
        assert_eq!(rng.randint(0, 1 << 40, 3), [474_247_592_490, 936_371_205_000, 719_526_270_950]);
        assert_eq!(rng.randint(3, 4, 2), [3, 3]);
        assert_eq!(rng.randint(0, 10, 4), [4, 0, 7, 0]);
        assert!(rng.randint(4, 4, 2).is_empty());
    }
}
