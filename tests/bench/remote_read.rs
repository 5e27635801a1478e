//! The decoder of XOR chunks beside its reference implementation.

use divan::Bencher;
use divan::counter::ItemsCount;
use promforest::prom::Sample;
use promforest::prom::wire::Malformed;
use promforest::prom::wire::read_response;
use promforest::remote_read::frames::ChunkedReader;
use promforest::remote_read::xor::{self, reference};
use std::hint::black_box;

/// A captured response of Prometheus: the received bytes of five network interfaces, a chunk of 60 samples each.
const STREAM: &[u8] = include_bytes!("../data/captures/remote-read/netdev-rx.stream.response.bin");

fn main() {
    divan::main();
}

/// The chunks and their number of samples.
fn chunks() -> (Vec<Vec<u8>>, usize) {
    let (mut reader, mut chunks) = (ChunkedReader::default(), Vec::new());
    reader.push(STREAM);
    while let Some(message) = reader.pop().expect("a frame") {
        read_response::visit_frame::<Malformed>(&message, &mut Vec::new(), |series| {
            series.visit_chunks(|chunk| {
                chunks.push(chunk.data.to_vec());
                Ok(())
            })
        })
        .expect("a message");
    }
    let samples = chunks.iter().map(|chunk| reference::decode(chunk).expect("a chunk").len()).sum();
    (chunks, samples)
}

/// The decoder, which loads 57 bits at a time.
#[divan::bench]
fn decode(bencher: Bencher) {
    let (chunks, n_samples) = chunks();
    let mut samples: Vec<Sample> = Vec::new();
    bencher.counter(ItemsCount::new(n_samples)).bench_local(move || {
        samples.clear();
        for chunk in &chunks {
            xor::decode(chunk, &mut samples).expect("a chunk");
        }
        black_box(samples.len())
    });
}

/// The reference implementation, which reads one bit at a time.
#[divan::bench]
fn reference_bits(bencher: Bencher) {
    let (chunks, n_samples) = chunks();
    bencher.counter(ItemsCount::new(n_samples)).bench_local(move || {
        for chunk in &chunks {
            black_box(reference::decode(chunk).expect("a chunk"));
        }
    });
}
