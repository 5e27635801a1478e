use super::super::super::super::rng::Rng;
use super::super::super::super::{ForestParams, MaxSamples, Table};
use super::super::{Plain, add_path_lengths as add};
use super::*;
use std::num::NonZeroUsize;

const N_FEATURES: usize = 5;

/// A table with some infinities, and forests of full, of shallow and of one-leaf trees.
fn values_and_forests(n_rows: usize) -> (Vec<f32>, Vec<Forest>) {
    let mut rng = Rng::new(n_rows as u64, 0);
    let mut values: Vec<f32> = (0..n_rows * N_FEATURES).map(|_| rng.next_normals()[0]).collect();
    let fit = |values: &[f32], max_samples: usize| {
        let table = Table::new(values, n_rows, N_FEATURES).expect("a table");
        let max_samples = MaxSamples::count(max_samples).expect("a count");
        let n_estimators = NonZeroUsize::new(30).expect("above 0");
        let params = ForestParams { n_estimators, max_samples, ..Default::default() };
        params.fit(&table, NonZeroUsize::MIN).expect("a forest")
    };
    let constant = vec![1.0; values.len()];
    let forests = vec![fit(&values, 700), fit(&values, 5), fit(&constant, 50)];
    for (value, infinity) in
        values.iter_mut().step_by(37).zip([f32::INFINITY, f32::NEG_INFINITY].iter().cycle())
    {
        *value = *infinity;
    }
    (values, forests)
}

fn bits(sums: &Sums, n_rows: usize) -> Vec<u64> {
    sums.as_flattened()[..n_rows].iter().map(|sum| sum.to_bits()).collect()
}

#[test]
fn all_instructions_give_the_same_bits() {
    for n_rows in [BLOCK, 100] {
        let (values, forests) = values_and_forests(n_rows);
        let table = Table::new(&values, n_rows, N_FEATURES).expect("a table");
        let mut block = Block::new(&table);
        block.load(0, n_rows);
        for forest in &forests {
            let sums_by = |work: &dyn Fn(&mut Sums)| {
                let mut sums = [[0.0; WORD]; N_WORDS];
                work(&mut sums);
                bits(&sums, n_rows)
            };
            let expected = sums_by(&|sums| add(&mut Plain, forest, &block, sums));
            assert_eq!(sums_by(&|sums| add(&mut Sse2, forest, &block, sums)), expected);
            assert_eq!(sums_by(&|sums| add_path_lengths(forest, &block, sums)), expected);
            let has_bmi = is_x86_feature_detected!("bmi1") && is_x86_feature_detected!("bmi2");
            if is_x86_feature_detected!("avx2") && has_bmi {
                // SAFETY: the processor has the features.
                assert_eq!(sums_by(&|sums| unsafe { add_with_avx2(forest, &block, sums) }), expected);
            }
        }
    }
}
