//! Splits work into equal chunks on scoped threads.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::{panic, thread};

/// Splits `0..n` into one range per thread. Returns the results of `work` in order.
pub(super) fn map_on_threads<T: Send>(
    n: usize,
    threads: NonZeroUsize,
    work: impl Fn(Range<usize>) -> T + Sync,
) -> Vec<T> {
    let chunk_len = n.div_ceil(threads.get());
    if chunk_len >= n {
        return vec![work(0..n)];
    }
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = (0..n)
            .step_by(chunk_len)
            .map(|start| scope.spawn(move || work(start..n.min(start + chunk_len))))
            .collect();
        let join = |worker: thread::ScopedJoinHandle<T>| {
            worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        };
        workers.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order() {
        for (n, n_threads) in [(0, 3), (1, 1), (7, 2), (7, 7), (7, 100), (100, 3)] {
            let n_threads = NonZeroUsize::new(n_threads).expect("above 0");
            let chunks = map_on_threads(n, n_threads, |chunk| chunk.collect::<Vec<usize>>());
            assert!(chunks.len() <= n_threads.get());
            assert!(chunks.concat().into_iter().eq(0..n), "{n} on {n_threads}");
        }
    }
}
