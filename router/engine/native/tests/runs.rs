//! Runs of single packets: whatever comes in whatever order, each peer gets all of its own, in order, in trains that a
//! kernel sends.

use std::collections::HashMap;

use podwire_engine::runs::{MOST_DATAGRAMS, Runs};
use podwire_engine::wire::shape::MAX_TRAIN_BYTES;

/// A number below `end`, from a seed that goes on (Knuth's MMIX generator).
fn below(seed: &mut u64, end: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize % end
}

struct Sender {
    buffer: Vec<u8>,
    most: usize,
    got: HashMap<usize, Vec<u32>>,
}

impl Sender {
    /// Check a train as the kernel would, and read the numbers that stand in its datagrams.
    fn send(&mut self, runs: &Runs, run: usize) {
        let run = runs.closed(run);
        let whole: Vec<u8> = run.pieces(&self.buffer).iter().flat_map(|piece| piece.to_vec()).collect();
        assert_eq!(whole.len(), run.bytes);
        assert!(whole.len() <= MAX_TRAIN_BYTES && run.count <= self.most, "{} in {}", run.count, run.bytes);
        assert_eq!(whole.len().div_ceil(run.step), run.count, "all as long as the first but the last");
        assert_eq!(run.first(&self.buffer), &whole[..run.step]);
        let numbers = whole.chunks(run.step).map(|row| u32::from_ne_bytes([row[0], row[1], row[2], row[3]]));
        self.got.entry(run.peer).or_default().extend(numbers);
    }
}

#[test]
fn nothing_is_lost_overtaken_or_misled() {
    let mut seed = 1;
    for turn in 0..40 {
        let (peers, most) = (1 + below(&mut seed, 40), 1 + below(&mut seed, MOST_DATAGRAMS));
        let sizes = [8 + below(&mut seed, 2000), 8 + below(&mut seed, 60), 9000];
        let mut sender = Sender { buffer: vec![0; 4 << 20], most, got: HashMap::new() };
        let mut runs = Runs::new(most);
        let mut sent: HashMap<usize, Vec<u32>> = HashMap::new();
        let mut at = 0;
        for number in 0..400u32 {
            let peer = below(&mut seed, peers);
            let size = sizes[below(&mut seed, 3 - turn % 2)];
            at += below(&mut seed, 2) * 10; // now and then something else lies between
            sender.buffer[at..at + 4].copy_from_slice(&number.to_ne_bytes());
            if let Some(run) = runs.in_the_way(peer, size) {
                sender.send(&runs, run);
            }
            if let Some(run) = runs.add(peer, at..at + size) {
                sender.send(&runs, run);
            }
            sent.entry(peer).or_default().push(number);
            at += size;
        }
        while let Some(run) = runs.close() {
            sender.send(&runs, run);
        }
        assert!(runs.is_empty());
        assert_eq!(sender.got, sent, "turn {turn}: {peers} peers, at most {most}");
    }
}
