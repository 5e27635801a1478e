//! The chunks of remote read, against a reader of single bits.

use divan::Bencher;
use divan::counter::ItemsCount;
use promforest::prom::Sample;
use promforest::prom::wire::Malformed;
use promforest::prom::wire::read_response;
use promforest::remote_read::frames::ChunkedReader;
use promforest::remote_read::xor::{self, reference};
use std::hint::black_box;

/// What a real Prometheus sent: five network interfaces' received bytes, a chunk of 60 samples each.
const STREAM: &[u8] = include_bytes!("../data/captures/remote-read/netdev-rx.stream.response.bin");

fn main() {
    divan::main();
}

/// The chunks, and how many samples they have.
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

/// 57 bits at a time.
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

/// One bit at a time.
#[divan::bench]
fn reference_bits(bencher: Bencher) {
    let (chunks, n_samples) = chunks();
    bencher.counter(ItemsCount::new(n_samples)).bench_local(move || {
        for chunk in &chunks {
            black_box(reference::decode(chunk).expect("a chunk"));
        }
    });
}
