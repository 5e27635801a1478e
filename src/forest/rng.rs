//! Random numbers with one stream per tree, so that a forest does not depend on the assignment of trees to threads.
//!
//! Not taken: a crate. The bits define a model, and must not change with the version of a dependency.

/// xoshiro256++ 1.0 (Blackman, Vigna 2019): 256 bits of state, with uniform bits.
#[derive(Clone, Debug)]
pub(super) struct Rng([u64; 4]);

impl Rng {
    /// The stream of tree number `tree` for a seed. Any two pairs give unrelated streams.
    pub fn new(seed: u64, tree: u64) -> Self {
        let mut state = mix(seed.wrapping_add(GOLDEN_GAMMA)).wrapping_add(tree);
        Self(std::array::from_fn(|_| {
            state = mix(state.wrapping_add(GOLDEN_GAMMA));
            state
        }))
    }

    pub fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// Uniform in `0..n`; `n` must not be 0. Multiply and shift (Lemire 2019) without the rejection
    /// step: its bias is below n / 2^64.
    pub fn next_below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Uniform in `[0, 1)`, in steps of 2^-53.
    pub fn next_uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Two independent draws from N(0, 1), by the polar method (Marsaglia, Bray 1964). Of its functions
    /// only `ln` depends on the platform, in the last bit. Rounding to `f32` hides that in all but one of 10^8 draws,
    /// and 24 bits are enough for a random number.
    pub fn next_normals(&mut self) -> [f32; 2] {
        loop {
            let [x, y] = [(); 2].map(|()| 2.0 * self.next_uniform() - 1.0);
            let square = x * x + y * y;
            if 0.0 < square && square < 1.0 {
                let factor = (-2.0 * square.ln() / square).sqrt();
                return [x * factor, y * factor].map(|draw| draw as f32);
            }
        }
    }
}

/// 2^64 divided by the golden ratio: splitmix64's increment.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// splitmix64's output function (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First outputs of the authors' C code from the state 1, 2, 3, 4.
    #[test]
    fn is_xoshiro256_plus_plus() {
        let mut rng = Rng([1, 2, 3, 4]);
        let first: [u64; 4] = std::array::from_fn(|_| rng.next());
        assert_eq!(first, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    /// First outputs of splitmix64 from the state 0.
    #[test]
    fn is_splitmix64() {
        assert_eq!(mix(GOLDEN_GAMMA), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GOLDEN_GAMMA.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn streams_differ() {
        let mut first: Vec<u64> = (0..40).map(|k| Rng::new(k / 20, k % 20).next()).collect();
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 40);
    }

    #[test]
    fn draws_stay_in_range() {
        let mut rng = Rng::new(7, 0);
        let mut seen = [0u32; 5];
        for _ in 0..5_000 {
            seen[rng.next_below(5)] += 1;
            assert!((0.0..1.0).contains(&rng.next_uniform()));
        }
        assert!(seen.iter().all(|&count| (900..1_100).contains(&count)), "{seen:?}");
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_distribution() {
        let mut rng = Rng::new(8, 0);
        let draws: Vec<f64> = (0..100_000).flat_map(|_| rng.next_normals()).map(f64::from).collect();
        let moment = |k: i32| draws.iter().map(|draw| draw.powi(k)).sum::<f64>() / draws.len() as f64;
        for (k, expected, tolerance) in [(1, 0.0, 0.01), (2, 1.0, 0.02), (3, 0.0, 0.04), (4, 3.0, 0.1)] {
            assert!((moment(k) - expected).abs() < tolerance, "moment {k} is {}", moment(k));
        }
        let product = draws.chunks_exact(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / 100_000.0;
        assert!(product.abs() < 0.015, "the two of a pair correlate: {product}");
        let beyond = draws.iter().filter(|draw| draw.abs() > 2.576).count();
        assert!((1_850..2_150).contains(&beyond), "{beyond} of 200000, expected are 1 %");
    }
}
