//! NumPy's legacy `RandomState`, so that subsets and orders are those the Python tools draw.
//!
//! Source: the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998) as NumPy seeds it from an integer (`init_genrand`), and the streams
//! NumPy froze for `RandomState` (NEP 19).

const WORDS: usize = 624;
const SHIFT: usize = 397;

/// `numpy.random.RandomState(seed)` for a 32-bit integer seed.
///
/// ```
/// use d2o_evaluations::numpy_random::RandomState;
/// assert_eq!(RandomState::new(2020).permutation(5), [3, 1, 2, 4, 0]);
/// ```
#[derive(Clone)]
pub struct RandomState {
    words: [u32; WORDS],
    at: usize,
}

impl std::fmt::Debug for RandomState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RandomState").field("at", &self.at).finish_non_exhaustive()
    }
}

impl RandomState {
    /// Seeded as `RandomState(seed)`.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        const MULTIPLIER: u32 = 1_812_433_253;
        let mut words = [0; WORDS];
        words[0] = seed;
        let mut last = seed;
        for (i, word) in (1_u32..).zip(words.iter_mut().skip(1)) {
            last = MULTIPLIER.wrapping_mul(last ^ (last >> 30)).wrapping_add(i);
            *word = last;
        }
        Self { words, at: WORDS }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        const UPPER: u32 = 0x8000_0000;
        const TWIST: u32 = 0x9908_b0df;
        if self.at == WORDS {
            for i in 0..WORDS {
                let joined = (self.words[i] & UPPER) | (self.words[(i + 1) % WORDS] & !UPPER);
                let twisted = (joined >> 1) ^ if joined & 1 == 1 { TWIST } else { 0 };
                self.words[i] = self.words[(i + SHIFT) % WORDS] ^ twisted;
            }
            self.at = 0;
        }
        let mut y = self.words[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 64 bits, the upper half first.
    fn next_u64(&mut self) -> u64 {
        let upper = u64::from(self.next_u32());
        (upper << 32) | u64::from(self.next_u32())
    }

    /// Uniform in `0..=max`: draws are masked to the bits of `max` and rejected above it.
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

    /// `choice(n, count, replace=False)`: the head of a permutation. `count` beyond `n` gives all `n`.
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
        // RandomState(0).tomaxint and randint of full range hide bits, so: RandomState(0).bytes(12) as little-endian words.
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
