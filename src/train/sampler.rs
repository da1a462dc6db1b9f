//! Sampling order of training images: the infinite sampler of EDM and D2O (`InfiniteSampler` in their `torch_utils/misc.py`).

use d2o_evaluations::numpy_random::RandomState;

/// Share of the set within which an image may be sampled again.
const WINDOW: f64 = 0.5;

/// Endless sequence of indices: repeated passes through a shuffled order. After each draw, the index is swapped with a
/// random one less than half the set earlier.
#[derive(Debug, Clone)]
pub struct InfiniteSampler {
    order: Vec<u32>,
    random: RandomState,
    window: u32,
    position: u64,
}

impl InfiniteSampler {
    /// The sampler of `count` images, at least 1, at the start of the sequence of `seed`.
    #[must_use]
    pub fn new(count: u32, seed: u32) -> Self {
        let mut order: Vec<u32> = (0..count).collect();
        let mut random = RandomState::new(seed);
        random.shuffle(&mut order);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "half of a u32")]
        let window = (f64::from(count) * WINDOW).round_ties_even() as u32;
        Self { order, random, window, position: 0 }
    }

    /// Returns the index at the current position and advances the position by one.
    pub fn draw(&mut self) -> u32 {
        let count = self.order.len();
        let at = usize::try_from(self.position % count as u64).unwrap_or(0);
        let drawn = self.order[at];
        if self.window >= 2 {
            let back = self.random.below(self.window) as usize;
            self.order.swap(at, (at + count - back) % count);
        }
        self.position += 1;
        drawn
    }

    /// Advances to `position`. An earlier position has no effect.
    pub fn skip_to(&mut self, position: u64) {
        while self.position < position {
            self.draw();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Output of the original `InfiniteSampler` (NVlabs/edm 008a4e5, NumPy 2.4.6).
    const CASES: [(u32, u32, [u32; 24]); 6] = [
        (1, 0, [0; 24]),
        (2, 5, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
        (3, 0, [2, 1, 2, 0, 2, 0, 2, 0, 2, 0, 2, 1, 0, 1, 2, 0, 1, 2, 0, 2, 1, 2, 1, 0]),
        (5, 1, [2, 1, 4, 0, 2, 1, 4, 0, 3, 2, 4, 1, 3, 2, 0, 4, 3, 1, 2, 0, 3, 4, 1, 0]),
        (7, 42, [0, 1, 5, 2, 4, 3, 6, 5, 1, 4, 3, 6, 1, 2, 3, 6, 1, 0, 2, 4, 3, 0, 2, 6]),
        (10, 123, [4, 0, 7, 5, 8, 3, 1, 6, 9, 4, 2, 7, 5, 0, 9, 1, 3, 7, 6, 4, 0, 1, 9, 7]),
    ];

    #[test]
    fn order_is_the_originals() {
        for (count, seed, expected) in CASES {
            let mut sampler = InfiniteSampler::new(count, seed);
            let drawn: Vec<u32> = (0..expected.len()).map(|_| sampler.draw()).collect();
            assert_eq!(drawn, expected, "{count} images, seed {seed}");
        }
        let mut sampler = InfiniteSampler::new(50_000, 42);
        let drawn: Vec<u64> = (0..120_000).map(|_| u64::from(sampler.draw())).collect();
        assert_eq!(drawn[..4], [33_553, 9_427, 199, 12_447]);
        let sum: u64 = drawn.iter().zip(0..).map(|(index, at)| index * (at % 97 + 1)).sum();
        assert_eq!(sum, 146_818_977_606);
    }

    #[test]
    fn a_skip_draws_what_is_passed_over() {
        let (mut a, mut b) = (InfiniteSampler::new(10, 3), InfiniteSampler::new(10, 3));
        for _ in 0..37 {
            a.draw();
        }
        b.skip_to(37);
        assert_eq!([a.draw(), a.draw(), a.draw()], [b.draw(), b.draw(), b.draw()]);
    }
}
